"""Shards of token ids: plain webdataset tars that are also memory-mapped.

One shard is one webdataset sample of three members:

- ``{key}.tokens.bin``  ids, uint16 (vocabularies up to 65,536) or uint32, little endian
- ``{key}.docs.idx``    uint64 little endian, where each document ends, counted in ids of the shard
- ``{key}.meta.json``   dtype, tokenizer fingerprint, counts, xxh3-128 digests of the two others

A document is never cut: it starts and ends in the same shard. Headers are fixed, so the same ids
give the same bytes. A tar's payload is aligned to 512 bytes, which lets a reader map it in place.
``index.json`` holds every member's offset, so opening a shard needs no scan.

Shapes: N ids of one document, M ids of one shard, D documents of one shard.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distllm.data.manifest import ShardRecord
from distllm.errors import DataError, IntegrityError
from distllm.fsio import atomic_open, atomic_write_json, digest_bytes, digest_file, read_json

INDEX_FILE = "index.json"
TOKENS = "tokens.bin"
ENDS = "docs.idx"
META = "meta.json"
_HEADER_BYTES = 512


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's payload lies in its tar, in bytes, and its xxh3-128 digest."""

    offset: int
    bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class IndexedShard:
    """An entry of ``index.json``: the shard and its members by suffix."""

    record: ShardRecord
    members: Mapping[str, Member]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest of uint16 and uint32 (little endian) that holds every id."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class ShardWriter:
    """Writes the documents of one split into shards of about ``shard_bytes`` of ids.

    A shard is closed before the document that would take it past ``shard_bytes``; a longer document
    gets a shard of its own. Held in memory: the ids of one shard.

    Args:
        directory: the dataset; shards go to ``directory/split``.
        split: name of the split.
        dtype: format of the ids, from ``token_dtype``.
        shard_bytes: bound of the ids in a shard.
        tokenizer_fingerprint: written into each shard's meta.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        *,
        dtype: np.dtype[Any],
        shard_bytes: int,
        tokenizer_fingerprint: str,
    ) -> None:
        self._directory = directory
        self._split = split
        self._dtype = dtype
        self._capacity = shard_bytes // dtype.itemsize
        self._fingerprint = tokenizer_fingerprint
        self._documents: list[NDArray[Any]] = []
        self._length = 0
        self._shards: list[IndexedShard] = []

    def add(self, ids_N: NDArray[Any]) -> None:
        """Append one document."""
        if self._documents and self._length + ids_N.size > self._capacity:
            self._flush()
        self._documents.append(ids_N.astype(self._dtype, copy=False))
        self._length += ids_N.size

    def close(self) -> list[IndexedShard]:
        """Write what is left and return all shards of the split, in order."""
        if self._documents:
            self._flush()
        return self._shards

    def _flush(self) -> None:
        ends_D = np.cumsum([ids_N.size for ids_N in self._documents]).astype("<u8")
        payloads = {TOKENS: np.concatenate(self._documents).tobytes(), ENDS: ends_D.tobytes()}
        meta = {
            "dtype": self._dtype.name,
            "tokenizer": self._fingerprint,
            "tokens": self._length,
            "documents": len(self._documents),
            "xxh3_128": {suffix: digest_bytes(payload) for suffix, payload in payloads.items()},
        }
        payloads[META] = (json.dumps(meta, indent=2, sort_keys=True) + "\n").encode()
        key = f"{len(self._shards):05d}"
        path = f"{self._split}/{key}.tar"
        members = _write_tar(self._directory / path, key, payloads)
        file = self._directory / path
        record = ShardRecord(path, file.stat().st_size, digest_file(file), self._length, len(ends_D))
        self._shards.append(IndexedShard(record, members))
        self._documents, self._length = [], 0


def _write_tar(path: Path, key: str, payloads: Mapping[str, bytes]) -> dict[str, Member]:
    """Write a tar whose bytes depend on nothing but its arguments."""
    members: dict[str, Member] = {}
    with (
        atomic_open(path) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for suffix, payload in payloads.items():
            header = tarfile.TarInfo(f"{key}.{suffix}")  # owner, group and time default to 0
            header.size = len(payload)
            members[suffix] = Member(tar.offset + _HEADER_BYTES, len(payload), digest_bytes(payload))
            tar.addfile(header, io.BytesIO(payload))
    return members


def write_index(directory: Path, splits: Mapping[str, list[IndexedShard]]) -> None:
    """Write ``index.json``: for each split its shards with counts, digests and member offsets."""
    content = {
        split: [{**asdict(shard.record), "members": _as_json(shard.members)} for shard in shards]
        for split, shards in splits.items()
    }
    atomic_write_json(directory / INDEX_FILE, content)


def read_index(directory: Path, split: str) -> list[IndexedShard]:
    """Read the shards of ``split`` from ``index.json``.

    Raises:
        DataError: the index is missing, is no index, or lacks the split.
    """
    path = directory / INDEX_FILE
    try:
        return [
            IndexedShard(
                members={name: Member(**member) for name, member in entry.pop("members").items()},
                record=ShardRecord(**entry),
            )
            for entry in read_json(path)[split]
        ]
    except (IntegrityError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not the index of a dataset with a split {split!r} ({error})",
            where=str(path),
            remedy=f"remove {directory}, then run: distllm prepare data.out={directory}",
        ) from error


def map_shard(
    directory: Path, shard: IndexedShard, dtype: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[np.uint64]]:
    """Map a shard's ids_M and document ends_D into memory; nothing is read until it is touched.

    Raises:
        DataError: the counts of the shard and the sizes of its members contradict each other.
    """
    path = directory / shard.record.path
    tokens, ends = shard.members[TOKENS], shard.members[ENDS]
    if tokens.bytes != shard.record.tokens * dtype.itemsize or ends.bytes != shard.record.documents * 8:
        raise DataError(
            f"shard {path} counts {shard.record.tokens} tokens in {shard.record.documents} documents, "
            f"but its members have {tokens.bytes} and {ends.bytes} bytes",
            where=str(directory / INDEX_FILE),
            remedy=f"remove {directory}, then run: distllm prepare data.out={directory}",
        )
    content = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    ids_M = content[tokens.offset : tokens.offset + tokens.bytes].view(dtype)
    ends_D = content[ends.offset : ends.offset + ends.bytes].view("<u8")
    return ids_M, ends_D


def _as_json(members: Mapping[str, Member]) -> dict[str, dict[str, Any]]:
    return {name: asdict(member) for name, member in members.items()}
