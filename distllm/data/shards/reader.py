"""Opening a shard: mapped into memory, after its small parts were compared with the index.

Shapes: M ids of one shard, D documents of one shard.
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distllm.data.manifest import rebuild_index
from distllm.data.mirror import local_shard
from distllm.data.records import TEXT
from distllm.data.shards.format import HEADER_BYTES, META, IndexedShard, members_of
from distllm.errors import DataError
from distllm.fsio import digest_bytes
from distllm.heartbeat import HEARTBEAT

_ATTEMPTS = 3


def map_shard(
    directory: Path, shard: IndexedShard, dtype: np.dtype[Any], field: str = TEXT
) -> tuple[NDArray[Any], NDArray[np.uint64]]:
    """Map a field's ids_M and document ends_D into memory; no id is read until it is touched.

    The size of the tar, the headers of the two members and the digest of the meta are compared with
    the index, which finds an index that is older than its tar or belongs to another one, and shards
    that changed places. It does not prove the ids: ``BlockVerifier`` does, where they are touched.

    Raises:
        DataError: the tar is missing or cut, the index contradicts it, or it has no such field.
    """
    path = directory / shard.record.path
    bin_, idx = members_of(field)
    if bin_ not in shard.members or idx not in shard.members:
        raise DataError(
            f"shard {path} has no field {field!r}",
            where=str(path),
            remedy=f"use one of: {', '.join(shard.fields)}",
        )
    tokens, ends = shard.members[bin_], shard.members[idx]
    held = sum(shard.members[members_of(name)[0]].bytes for name in shard.fields)
    if held != shard.record.tokens * dtype.itemsize or ends.bytes != shard.record.documents * 8:
        raise contradiction(
            directory,
            shard,
            f"it counts {shard.record.tokens} tokens in {shard.record.documents} documents, "
            f"but its members have {held} and {ends.bytes} bytes",
        )
    HEARTBEAT.reading(path)
    content = _map_file(directory, shard)
    for suffix in (bin_, idx, META):
        _check_header(directory, shard, content, suffix)
    ids_M = content[tokens.offset : tokens.offset + tokens.bytes].view(dtype)
    ends_D = content[ends.offset : ends.offset + ends.bytes].view("<u8")
    return ids_M, ends_D


def payload(directory: Path, shard: IndexedShard, suffix: str) -> NDArray[np.uint8]:
    """Map the bytes of one member.

    Raises:
        DataError: the tar is missing or cut, or the index contradicts it.
    """
    content = _map_file(directory, shard)
    _check_header(directory, shard, content, suffix)
    member = shard.members[suffix]
    return content[member.offset : member.offset + member.bytes]


def contradiction(directory: Path, shard: IndexedShard, problem: str) -> DataError:
    """Return the error of an index entry and a tar that contradict each other."""
    path = directory / shard.record.path
    return DataError(
        f"shard {path} is not the one of the index: {problem}",
        where=str(path),
        remedy=f"restore the shard from a copy; {rebuild_index(directory)}",
    )


def _map_file(directory: Path, shard: IndexedShard) -> NDArray[np.uint8]:
    for _ in range(_ATTEMPTS):
        try:
            with local_shard(directory, shard.record).open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                # A map longer than its file would end the process with SIGBUS where it is touched.
                if size != shard.record.bytes:
                    raise contradiction(
                        directory, shard, f"it has {size} bytes, expected {shard.record.bytes}"
                    )
                return np.asarray(np.memmap(stream, dtype=np.uint8, mode="r"))
        except (FileNotFoundError, IsADirectoryError):
            continue  # a mirror fetches it again: another process may have made room between the two calls
    raise contradiction(directory, shard, "it is missing")


def _check_header(directory: Path, shard: IndexedShard, content: NDArray[np.uint8], suffix: str) -> None:
    """Compare a member's tar header with the index, and the meta's content with its digest."""
    member = shard.members[suffix]
    at = member.offset - HEADER_BYTES
    try:
        header = tarfile.TarInfo.frombuf(content[at : member.offset].tobytes(), "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise contradiction(
            directory, shard, f"the tar header of {suffix} at byte {at} is damaged ({error})"
        ) from error
    key = Path(shard.record.path).stem
    if Path(header.name).name != f"{key}.{suffix}" or header.size != member.bytes:
        problem = (
            f"at byte {at} it has {header.name} of {header.size} bytes, "
            f"expected {suffix} of {member.bytes} bytes"
        )
        raise contradiction(directory, shard, problem)
    if (
        suffix == META
        and digest_bytes(content[at + HEADER_BYTES :][: member.bytes].tobytes()) != member.digest
    ):
        raise contradiction(directory, shard, f"the digest of {META} is another: damaged, or one is older")


def read_meta(directory: Path, shard: IndexedShard) -> dict[str, Any]:
    """Return the content of a shard's ``meta.json``.

    Raises:
        DataError: the index contradicts the shard.
    """
    content: dict[str, Any] = json.loads(payload(directory, shard, META).tobytes())
    return content
