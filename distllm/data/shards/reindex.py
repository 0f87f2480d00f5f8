"""Rebuilding ``index.json`` from the tars."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from distllm.data.manifest import INDEX_FILE, Manifest, ShardRecord, SplitRecord, rebuild
from distllm.data.shards.format import META, IdsRecord, IndexedShard, Member
from distllm.data.shards.index import write_index
from distllm.data.shards.locked import locked
from distllm.errors import DataError
from distllm.fsio import digest_bytes, digest_file, storage_errors

_MEMBER_LIMIT = 1 << 20


def reindex(directory: Path) -> Manifest:
    """Write the index of the tars of ``directory``, and return the dataset's manifest.

    Tars that were packed again, with the same members, get new records in a new manifest that follows
    the old one, because its samples are the same.

    Raises:
        DataError: a tar is missing, damaged, or holds other documents than the manifest says.
        RunDirectoryBusy: another process changes the dataset.
        StorageError: the disk is full or not writable.
    """
    before = Manifest.read(directory)
    with locked(directory), storage_errors(directory):
        index = {
            source: {
                split: [scan_shard(directory, shard.path) for shard in record.shards]
                for split, record in splits.items()
            }
            for source, splits in before.sources.items()
        }
        sources = {
            source: {
                split: _settle(directory, before.sources[source][split], shards)
                for split, shards in splits.items()
            }
            for source, splits in index.items()
        }
        write_index(directory, index)
        files = {**before.files, INDEX_FILE: digest_file(directory / INDEX_FILE)}
        if sources == before.sources and files == before.files:
            return before
        after = replace(before, sources=sources, files=files, lineage=(*before.lineage, before.digest))
        after.save(directory)
    return after


def scan_shard(directory: Path, path: str) -> IndexedShard:
    """Return the index entry of one tar, after verifying each of its members.

    Raises:
        DataError: it is missing, cut, damaged, or no shard.
    """
    file = directory / path
    try:
        members, meta = _scan(file)
        ids = IdsRecord(meta["ids"]["bytes"], meta["ids"]["digest"])
        for suffix, digest in meta["xxh3_128"].items():
            if suffix not in members:
                raise _unusable(file, f"it has no {suffix}: it was cut between two members", directory)
            if members[suffix].digest != digest:
                raise _unusable(file, f"{suffix} is damaged", directory)
        record = ShardRecord(
            path,
            file.stat().st_size,
            digest_file(file),
            meta["tokens"],
            meta["documents"],
            members[META].digest,
        )
    except (OSError, tarfile.TarError, KeyError, TypeError, ValueError) as error:
        raise _unusable(file, f"it is no shard ({error!r})", directory) from error
    ordered = [*meta["xxh3_128"], META]
    return IndexedShard(record, ids, {suffix: members[suffix] for suffix in ordered})


def _scan(file: Path) -> tuple[dict[str, Member], dict[str, Any]]:
    members: dict[str, Member] = {}
    meta: dict[str, Any] = {}
    with tarfile.open(file, "r:") as tar:
        for header in tar:
            key, suffix = Path(header.name).name.split(".", 1)
            if key != file.stem:
                raise ValueError(f"{header.name} belongs to another shard")
            if header.size > file.stat().st_size:  # a sparse member is as large as it likes to say
                raise ValueError(f"{header.name} claims {header.size} bytes, more than the whole tar has")
            stream = tar.extractfile(header)
            if stream is None:
                raise ValueError(f"{header.name} is no file")
            content = stream.read()
            members[suffix] = Member(header.offset_data, header.size, digest_bytes(content))
            if suffix == META:
                if len(content) > _MEMBER_LIMIT:
                    raise ValueError(f"{META} has {len(content)} bytes")
                meta = json.loads(content)
    if not meta:
        raise ValueError(f"it has no {META}: it was cut between two members")
    return members, meta


def _settle(directory: Path, record: SplitRecord, shards: list[IndexedShard]) -> SplitRecord:
    """Return the split with the records of its tars; their content must be the same as before."""
    for old, shard in zip(record.shards, shards, strict=True):
        if shard.record.content != old.content:
            raise _unusable(directory / old.path, "the manifest names a shard with other content", directory)
    return replace(record, shards=tuple(shard.record for shard in shards))


def _unusable(file: Path, problem: str, directory: Path) -> DataError:
    return DataError(
        f"shard {file} cannot be indexed: {problem}",
        where=str(file),
        remedy=f"restore it from a copy, or {rebuild(directory)}",
    )
