"""Several datasets of one tokenizer as one: shards are linked or copied, manifests combined."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from distllm.data.manifest import INDEX_FILE, Forgotten, Manifest, SourceCounts, SplitRecord
from distllm.data.privacy.canaries import CANARIES_FILE, combine_canaries
from distllm.data.shards.documents import shard_ids
from distllm.data.shards.format import IndexedShard
from distllm.data.shards.index import Index, index_of, write_index
from distllm.data.shards.reader import map_shard
from distllm.data.shards.verify import verify
from distllm.data.shards.writer import write_shard
from distllm.data.staging import Staging
from distllm.data.tokenizer import TOKENIZER_FILE, TOKENIZER_FILES
from distllm.errors import DataError
from distllm.fsio import atomic_write_json, digest_file, read_json, storage_errors


@dataclass(frozen=True, slots=True)
class _Part:
    """One of the datasets, and the names of its sources in the merged one."""

    directory: Path
    manifest: Manifest
    index: Index
    names: Mapping[str, str]


def merge(directories: Sequence[Path], out: Path) -> Manifest:
    """Make the dataset ``out`` of all sources of ``directories``, in their order.

    Every digest of the datasets is checked first. ``-2`` (``-3`` and so on) is appended to the name of a
    source that is taken, and its shards are rewritten, because a shard contains its source; other
    shards are hard-linked, or copied where the file system has no links. Canaries are counted together.

    Raises:
        DataError: a dataset is damaged, they have different tokenizers, canaries of different lists, or
            ``out`` exists.
        RunDirectoryBusy: another process makes ``out``.
        StorageError: the disk is full or not writable; nothing is left behind.
    """
    if out.exists():
        raise DataError(f"{out} exists", where=f"out={out}", remedy="choose another out, or remove it")
    parts = _parts(directories)
    canaries = _canaries(parts)
    with storage_errors(out), Staging(out) as staging:
        index = {
            name: {
                split: [_bring(part, s, name, staging.directory) for s in shards] for split, shards in splits
            }
            for part in parts
            for source, name in part.names.items()
            for splits in [part.index[source].items()]
        }
        write_index(staging.directory, index)
        files = [INDEX_FILE, *(name for name in TOKENIZER_FILES if name in parts[0].manifest.files)]
        for file in files[1:]:
            shutil.copyfile(parts[0].directory / file, staging.directory / file)
        if canaries is not None:
            atomic_write_json(staging.directory / CANARIES_FILE, canaries)
            files.append(CANARIES_FILE)
        manifest = _combine(parts, index, {name: digest_file(staging.directory / name) for name in files})
        manifest.save(staging.directory)
        staging.commit()
    return manifest


def _parts(directories: Sequence[Path]) -> list[_Part]:
    parts: list[_Part] = []
    taken: set[str] = set()
    for directory in directories:
        manifest = verify(directory)
        first = parts[0] if parts else None
        if first and manifest.tokenizer_fingerprint != first.manifest.tokenizer_fingerprint:
            raise DataError(
                f"{directory} was made with another tokenizer than {first.directory}",
                where=str(directory),
                remedy=f"prepare it again with tokenizer.path={first.directory / TOKENIZER_FILE}",
            )
        names = {}
        for source in manifest.sources:
            candidates = (source if number == 1 else f"{source}-{number}" for number in count(1))
            names[source] = next(name for name in candidates if name not in taken)
            taken.add(names[source])
        parts.append(_Part(directory, manifest, index_of(directory, manifest), names))
    return parts


def _bring(part: _Part, shard: IndexedShard, name: str, directory: Path) -> IndexedShard:
    """Put a shard and its list of ids into ``directory`` as one of the source ``name``."""
    source, split, file = shard.record.path.split("/")
    if source != name:
        dtype = np.dtype(part.manifest.token_dtype).newbyteorder("<")
        columns = {field: map_shard(part.directory, shard, dtype, field) for field in shard.fields}
        ids = shard_ids(part.directory, shard)
        path = f"{name}/{split}/{file}"
        return write_shard(directory, path, ids, columns, dtype, part.manifest.tokenizer_fingerprint)
    for path in (shard.record.path, shard.ids_path):
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        _link(part.directory / path, directory / path)
    return shard


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        shutil.copyfile(file, target)


def _canaries(parts: Sequence[_Part]) -> dict[str, Any] | None:
    known = {
        str(part.directory): read_json(part.directory / CANARIES_FILE)
        for part in parts
        if CANARIES_FILE in part.manifest.files
    }
    return combine_canaries(known) if known else None


def _combine(parts: Sequence[_Part], index: Index, files: Mapping[str, str]) -> Manifest:
    sources: dict[str, Mapping[str, SplitRecord]] = {}
    counts: dict[str, SourceCounts] = {}
    fields: dict[str, tuple[str, ...]] = {}
    for part in parts:
        for source, name in part.names.items():
            sources[name] = {
                split: replace(record, shards=tuple(shard.record for shard in index[name][split]))
                for split, record in part.manifest.sources[source].items()
            }
            counts[name] = part.manifest.counts[source]
            fields[name] = part.manifest.fields[source]
    hashes = sorted({digest for part in parts for digest in part.manifest.forgotten.hashes})
    return replace(
        parts[0].manifest,
        pipeline={"merged": [part.manifest.digest for part in parts]},
        inputs="",
        sources=sources,
        counts=counts,
        fields=fields,
        files=files,
        lineage=(),
        forgotten=Forgotten(sum(part.manifest.forgotten.count for part in parts), tuple(hashes)),
    )
