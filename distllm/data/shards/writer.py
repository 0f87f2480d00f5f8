"""Writing shards: where each ends; its bytes are a pure function of its content.

Shapes: N ids of one document, or N documents of one split; M ids of one shard, D documents of one shard.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

from distllm.data.manifest import ShardRecord
from distllm.data.shards.format import (
    BLOCK_BYTES,
    BLOCKS,
    HEADER_BYTES,
    META,
    IdsRecord,
    IndexedShard,
    Member,
    check_names,
    ids_path,
    members_of,
)
from distllm.data.shards.ids import encode_ids
from distllm.fsio import atomic_open, atomic_write_bytes, digest_bytes, digest_file

Column: TypeAlias = tuple[NDArray[Any], NDArray[Any]]
"""A field of the documents of a shard: ids_M one after the other, and ends_D, where each ends.

Ids that are mapped from a file in the format they are written in are never held.
"""


class Stretch(NamedTuple):
    """Documents ``[start, stop)`` of a split, and how many ids they have."""

    start: int
    stop: int
    ids: int


def plan_shards(lengths: Iterable[NDArray[Any]], capacity: int) -> Iterator[Stretch]:
    """Cut documents into shards of at most ``capacity`` ids; a longer document gets its own shard.

    Args:
        lengths: ids of each document, part by part; one part is held at a time.
        capacity: ids in a shard.

    Yields:
        The documents of each shard; none is empty.
    """
    start = stop = held = 0
    for lengths_D in lengths:
        ends_D = np.cumsum(lengths_D, dtype=np.int64)
        row, before = 0, 0  # documents of the part that have a shard, and their ids
        while row < ends_D.size:
            fitting = int(np.searchsorted(ends_D, before + capacity - held, side="right"))
            if (next_row := max(fitting, row + int(start == stop))) > row:
                end = int(ends_D[next_row - 1])
                held, before, stop, row = held + end - before, end, stop + next_row - row, next_row
            if row < ends_D.size:
                yield Stretch(start, stop, held)
                start, held = stop, 0
    if start < stop:
        yield Stretch(start, stop, held)


def write_shard(
    directory: Path,
    path: str,
    document_ids: Sequence[str | None],
    columns: Mapping[str, Column],
    dtype: np.dtype[Any],
    fingerprint: str,
) -> IndexedShard:
    """Write one shard and its file of ids; both appear whole or not at all.

    The bytes written depend only on the arguments.

    Args:
        directory: the dataset.
        path: ``<source>/<split>/<key>.tar``.
        document_ids: name of each document; None for a forgotten one.
        columns: ids_M and ends_D of each field; all fields have the same number of documents.
        dtype: format of the ids, from ``token_dtype``.
        fingerprint: of the tokenizer.

    Raises:
        DataError: the source or a field cannot be named so.
        StorageError: the disk is full or not writable.
        ValueError: columns, document ids or dtype contradict each other.
    """
    source, split, name = path.rsplit("/", 2)
    check_names(source, columns)
    payloads = _payloads(document_ids, columns, dtype)
    names = encode_ids(document_ids)
    ids = IdsRecord(len(names), digest_bytes(names))
    tokens = {field: int(ids_M.size) for field, (ids_M, _) in columns.items()}
    meta = {
        "source": source,
        "split": split,
        "dtype": dtype.name,
        "tokenizer": fingerprint,
        "fields": tokens,
        "tokens": sum(tokens.values()),
        "documents": len(document_ids),
        "block_bytes": BLOCK_BYTES,
        "ids": {"bytes": ids.bytes, "digest": ids.digest},
        "xxh3_128": {suffix: digest_bytes(payload) for suffix, payload in payloads.items()},
    }
    payloads[META] = memoryview((json.dumps(meta, indent=2) + "\n").encode())
    atomic_write_bytes(directory / ids_path(path), names)
    members = _write_tar(directory / path, name.removesuffix(".tar"), payloads)
    file = directory / path
    record = ShardRecord(
        path=path,
        bytes=file.stat().st_size,
        digest=digest_file(file),
        tokens=sum(tokens.values()),
        documents=len(document_ids),
        content=members[META].digest,
    )
    return IndexedShard(record, ids, members)


def _payloads(
    document_ids: Sequence[str | None], columns: Mapping[str, Column], dtype: np.dtype[Any]
) -> dict[str, memoryview]:
    """Return every member but the meta, in the order of the tar."""
    payloads: dict[str, memoryview] = {}
    blocks: list[NDArray[np.uint64]] = []
    for field, (ids_M, ends_D) in columns.items():
        if len(ends_D) != len(document_ids) or (ends_D.size and int(ends_D[-1]) != ids_M.size):
            raise ValueError(f"field {field} has {len(ends_D)} of {len(document_ids)} documents")
        if ids_M.size and (int(ids_M.max()) > np.iinfo(dtype).max or int(ids_M.min()) < 0):
            raise ValueError(f"field {field} has ids that {dtype} cannot hold")
        bin_, idx = members_of(field)
        payloads[bin_] = _bytes(ids_M, dtype)
        payloads[idx] = _bytes(ends_D, np.dtype("<u8"))
        blocks.append(block_digests(payloads[bin_]))
    payloads[BLOCKS] = _bytes(np.concatenate(blocks), np.dtype("<u8"))
    return payloads


def block_digests(payload: memoryview) -> NDArray[np.uint64]:
    """Return the xxh3-64 of each block of ``BLOCK_BYTES``; the last one may be shorter."""
    starts = range(0, len(payload), BLOCK_BYTES)
    digests = [xxhash.xxh3_64_intdigest(payload[at : at + BLOCK_BYTES]) for at in starts]
    return np.array(digests, dtype=np.uint64)


def _bytes(array: NDArray[Any], dtype: np.dtype[Any]) -> memoryview:
    return np.ascontiguousarray(array, dtype=dtype).view(np.uint8).data


def _write_tar(path: Path, key: str, payloads: Mapping[str, memoryview]) -> dict[str, Member]:
    """Write a tar whose bytes depend only on the arguments."""
    members: dict[str, Member] = {}
    with (
        atomic_open(path) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for suffix, payload in payloads.items():
            header = tarfile.TarInfo(f"{key}.{suffix}")  # owner, group and time default to 0
            header.size = len(payload)
            members[suffix] = Member(tar.offset + HEADER_BYTES, len(payload), digest_bytes(payload))
            tar.addfile(header, _Content(payload))
    return members


class _Content(io.RawIOBase):
    """Reads a payload without a copy of the whole."""

    def __init__(self, payload: memoryview) -> None:
        self._rest = payload

    def read(self, size: int = -1) -> bytes:
        """Return the next ``size`` bytes, fewer at the end."""
        cut = len(self._rest) if size < 0 else size
        content, self._rest = bytes(self._rest[:cut]), self._rest[cut:]
        return content
