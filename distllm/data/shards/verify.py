"""Proof of a whole dataset: every digest of every file, and every problem at once."""

from __future__ import annotations

from pathlib import Path

from distllm.data.manifest import Manifest, rebuild, size_problem
from distllm.errors import DataError
from distllm.fsio import digest_file


def verify(directory: Path) -> Manifest:
    """Recompute the digest of every shard; reads the whole dataset.

    Raises:
        DataError: naming every shard that is missing, cut, or changed.
    """
    manifest = Manifest.load(directory)
    bad: list[str] = []
    for split in manifest.splits.values():
        for shard in split.shards:
            problem = size_problem(directory, shard)
            if problem is None and digest_file(directory / shard.path) != shard.digest:
                problem = "its content is not what was written"
            if problem is not None:
                bad.append(f"{shard.path}: {problem}")
    if bad:
        raise DataError(
            f"{len(bad)} damaged shards in {directory}: {'; '.join(bad)}",
            where=str(directory / bad[0].split(":", 1)[0]),
            remedy=rebuild(directory),
        )
    return manifest
