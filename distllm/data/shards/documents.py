"""Finding a document by its name or number, and reading it back exactly.

Shapes: N ids of one field of a document.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distllm.data.manifest import rebuild
from distllm.data.records import ANSWERS, TEXT
from distllm.data.shards.blocks import BlockVerifier
from distllm.data.shards.format import IndexedShard
from distllm.data.shards.ids import decode_ids
from distllm.data.shards.index import Index
from distllm.data.shards.reader import map_shard
from distllm.data.tokenizer import Tokenizer
from distllm.errors import DataError
from distllm.fsio import digest_bytes


@dataclass(frozen=True, slots=True)
class Place:
    """Where a document lies.

    Attributes:
        id: its name; None if it was forgotten.
        source: its source.
        split: its split.
        number: which document of the split it is, from 0.
        shard: number of the shard in the split.
        row: which document of the shard it is.
    """

    id: str | None
    source: str
    split: str
    number: int
    shard: int
    row: int


def shard_ids(directory: Path, shard: IndexedShard) -> list[str | None]:
    """Read the ids of a shard's documents; None for a forgotten one.

    Raises:
        DataError: the file of ids is missing, damaged, or does not fit the shard.
    """
    path = directory / shard.ids_path
    content = path.read_bytes() if path.is_file() else b""
    if digest_bytes(content) != shard.ids.digest:
        problem = "is not what was written" if content else "is missing"
        raise DataError(
            f"the list of document ids {path} {problem}", where=str(path), remedy=rebuild(directory)
        )
    ids = decode_ids(content, path)
    if len(ids) != shard.record.documents:
        raise DataError(
            f"{path} names {len(ids)} documents, its shard has {shard.record.documents}",
            where=str(path),
            remedy=rebuild(directory),
        )
    return ids


def find_documents(
    directory: Path, index: Index, ids: Collection[str], source: str | None = None
) -> list[Place]:
    """Return every document with one of these ids, in the order of the index; reads all lists of ids.

    Raises:
        DataError: naming every id that no document has.
    """
    places = [place for place in _places(directory, index, source) if place.id in ids]
    missing = sorted(set(ids) - {place.id for place in places if place.id is not None})
    if missing:
        raise DataError(
            f"{directory} has no document {', '.join(map(repr, missing))}",
            where=f"id={missing[0]}",
            remedy="give ids as they stand in the dataset: distllm data inspect shows them by number",
        )
    return places


def document_at(directory: Path, index: Index, source: str, split: str, number: int) -> Place:
    """Return document ``number`` of a split.

    Raises:
        DataError: there is no such source, split or document.
    """
    first = 0
    for order, shard in enumerate(index.get(source, {}).get(split, ())):
        if first <= number < first + shard.record.documents:
            row = number - first
            return Place(shard_ids(directory, shard)[row], source, split, number, order, row)
        first += shard.record.documents
    known = ", ".join(
        f"source={name} split={part} document=0..{count - 1}"
        for name, splits in index.items()
        for part, shards in splits.items()
        if (count := sum(shard.record.documents for shard in shards))
    )
    raise DataError(
        f"{directory} has no document {number} in split {split!r} of source {source!r}",
        where=f"document={number}",
        remedy=f"it has {known}",
    )


def read_document(
    directory: Path, shard: IndexedShard, row: int, dtype: np.dtype[Any]
) -> dict[str, NDArray[Any]]:
    """Return the ids_N of each field of a document, as they are stored, after verifying their blocks.

    Raises:
        DataError: the shard is damaged there.
    """
    found: dict[str, NDArray[Any]] = {}
    for field in shard.fields:
        ids_M, ends_D = map_shard(directory, shard, dtype, field)
        start, stop = int(ends_D[row - 1]) if row else 0, int(ends_D[row])
        BlockVerifier(directory, shard, dtype, field).check(start, stop)
        found[field] = ids_M[start:stop]
    return found


def document_texts(ids: Mapping[str, NDArray[Any]], tokenizer: Tokenizer) -> dict[str, str]:
    """Return the exact text of each field; the EOT that opens a plain document is not part of it."""
    return {field: _text(field, ids_N, tokenizer) for field, ids_N in ids.items()}


def _text(field: str, ids_N: NDArray[Any], tokenizer: Tokenizer) -> str:
    if field == ANSWERS and not tokenizer.lossless:  # bytes: see `distllm.data.examples.answers`
        try:
            held = json.loads(ids_N.astype(np.uint8).tobytes())[ANSWERS]
        except ValueError:  # of a forgotten document
            return ""
        return json.dumps(held, ensure_ascii=False)
    return tokenizer.decode((ids_N[1:] if field == TEXT else ids_N).tolist())


def _places(directory: Path, index: Index, source: str | None) -> Iterator[Place]:
    for name, splits in index.items():
        if source not in (None, name):
            continue
        for split, shards in splits.items():
            number = 0
            for order, shard in enumerate(shards):
                for row, id_ in enumerate(shard_ids(directory, shard)):
                    yield Place(id_, name, split, number, order, row)
                    number += 1
