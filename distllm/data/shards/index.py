"""``index.json``: for each source and split its shards, with counts, digests and member offsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from distllm.data.manifest import INDEX_FILE, Manifest, ShardRecord, rebuild_index
from distllm.data.shards.format import IdsRecord, IndexedShard, Member
from distllm.errors import DataError, IntegrityError
from distllm.fsio import atomic_write_json, read_json

Index: TypeAlias = Mapping[str, Mapping[str, Sequence[IndexedShard]]]
"""Shards by source and split, in the order of their documents."""


def write_index(directory: Path, sources: Index) -> None:
    """Write ``index.json``, whole or not at all."""
    content = {
        source: {split: [encode_entry(shard) for shard in shards] for split, shards in splits.items()}
        for source, splits in sources.items()
    }
    atomic_write_json(directory / INDEX_FILE, {"sources": content})


def load_index(directory: Path) -> Index:
    """Read all of ``index.json``.

    Raises:
        DataError: it is missing or is no index.
    """
    path = directory / INDEX_FILE
    try:
        return {
            source: {split: [decode_entry(entry) for entry in entries] for split, entries in splits.items()}
            for source, splits in read_json(path)["sources"].items()
        }
    except (IntegrityError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not the index of a dataset ({error})",
            where=str(path),
            remedy=rebuild_index(directory),
        ) from error


def index_of(directory: Path, manifest: Manifest) -> Index:
    """Read ``index.json`` and check that it is the one of the manifest.

    Raises:
        DataError: the index is missing, is no index, or names other shards than the manifest.
    """
    index = load_index(directory)
    held = {
        source: {split: [s.record for s in index[source][split]] for split in index[source]}
        for source in index
    }
    named = {
        source: {split: list(record.shards) for split, record in splits.items()}
        for source, splits in manifest.sources.items()
    }
    if held != named:
        raise DataError(
            f"the manifest and the index of {directory} name different shards",
            where=str(directory / INDEX_FILE),
            remedy=rebuild_index(directory),
        )
    return index


def encode_entry(shard: IndexedShard) -> dict[str, Any]:
    """Return an entry of the index as JSON values."""
    members = {name: asdict(member) for name, member in shard.members.items()}
    # members as a list: the order of the fields must survive key-sorted JSON
    return {
        "record": asdict(shard.record),
        "ids": asdict(shard.ids),
        "members": [{"suffix": suffix, **member} for suffix, member in members.items()],
    }


def decode_entry(entry: Mapping[str, Any]) -> IndexedShard:
    """Return the entry that ``encode_entry`` made into JSON values."""
    members = {
        item["suffix"]: Member(item["offset"], item["bytes"], item["digest"]) for item in entry["members"]
    }
    return IndexedShard(ShardRecord(**entry["record"]), IdsRecord(**entry["ids"]), members)
