"""The shard format: the members of a tar, and the entries of an index.

One shard is ``<source>/<split>/00000.tar``, one webdataset sample whose members are

- ``{key}.tokens.bin``   ids of the field ``text``, little endian uint16, uint32 above 65,536 of them
- ``{key}.docs.idx``     uint64 little endian, where each document ends, counted in ids of the shard
- ``{key}.<field>.bin`` and ``{key}.<field>.idx``, the same two for every other field
- ``{key}.blocks.idx``   uint64 little endian, xxh3-64 of each 64 KiB block of each ``.bin``, in order
- ``{key}.meta.json``    source, split, fields, dtype, tokenizer, counts, xxh3-128 of all the others

A plain document is ``[EOT, ids...]``; other fields hold raw ids. A document is never cut: it starts
and ends in the same shard. Headers are fixed, so the same ids give the same bytes. A tar's payload
is aligned to 512 bytes, which lets a reader map it in place. Beside a tar lies ``00000.ids.gz``, the
documents' names (see ``ids``). ``index.json`` holds every member's offset, so opening a shard needs
no scan; it can be rebuilt from the tars.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from distllm.data.manifest import ShardRecord
from distllm.data.records import TEXT
from distllm.errors import DataError

TEXT_MEMBERS = ("tokens.bin", "docs.idx")
BLOCKS = "blocks.idx"
META = "meta.json"
HEADER_BYTES = 512
BLOCK_BYTES = 1 << 16
_RESERVED_FIELDS = frozenset({"tokens", "docs", "blocks", "meta"})
_FIELD = re.compile(r"[a-z][a-z0-9_]*")
_SOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's payload lies in its tar, in bytes, and its xxh3-128 digest."""

    offset: int
    bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class IdsRecord:
    """The file of document ids beside a tar: its size in bytes and its xxh3-128 digest."""

    bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class IndexedShard:
    """An entry of ``index.json``: the shard, the file of its ids, and its members by suffix."""

    record: ShardRecord
    ids: IdsRecord
    members: Mapping[str, Member]

    @property
    def ids_path(self) -> str:
        """The file of ids beside the tar, relative to the dataset."""
        return ids_path(self.record.path)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of its documents, in the order of their members."""
        names = (suffix.removesuffix(".bin") for suffix in self.members if suffix.endswith(".bin"))
        return tuple(TEXT if name == "tokens" else name for name in names)


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest of uint16 and uint32 (little endian) that holds every id."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def members_of(field: str) -> tuple[str, str]:
    """Return the suffixes of the ids and the ends of a field."""
    return TEXT_MEMBERS if field == TEXT else (f"{field}.bin", f"{field}.idx")


def ids_path(shard_path: str) -> str:
    """Return the path of the file of ids that lies beside a tar."""
    return shard_path.removesuffix(".tar") + ".ids.gz"


def shard_path(source: str, split: str, number: int) -> str:
    """Return the path of a shard, relative to its dataset."""
    return f"{source}/{split}/{number:05d}.tar"


def check_names(source: str, fields: Iterable[str]) -> None:
    """Check that a source can name a directory and its fields members.

    Raises:
        DataError: a name has other characters, or is one that the format uses.
    """
    if not _SOURCE.fullmatch(source):
        raise DataError(
            f"{source!r} cannot name a source",
            where=f"source {source}",
            remedy="use letters, digits, '-' and '_', and begin with a letter or digit",
        )
    reserved = ", ".join(sorted(_RESERVED_FIELDS))
    for field in fields:
        if not _FIELD.fullmatch(field) or field in _RESERVED_FIELDS:
            raise DataError(
                f"{field!r} cannot name a field",
                where=f"source {source}",
                remedy=f"use lower-case letters, digits and '_', and none of {reserved}",
            )
