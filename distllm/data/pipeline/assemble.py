"""The last stages: cut the encoded documents into shards, and put the dataset together.

Documents of a split follow each other in canonical order (sources by name, parts by path), and
where a shard ends depends only on their lengths, so shards can be written by any process.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from distllm.data.pipeline.encode import EncodedUnit
from distllm.data.pipeline.work import Result, Task, Tick, WorkDirectory, address
from distllm.data.scratch import Scratch
from distllm.data.shards import Column, IndexedShard, decode_entry, encode_entry, plan_shards, write_shard
from distllm.fsio import fsync_file

_VERSION = 1
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)


@dataclass(frozen=True, slots=True)
class Slice:
    """Documents ``[start, stop)`` of one encoded unit."""

    unit: Result
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """The encoded units of one split of one source, in order."""

    source: str
    split: str
    fields: tuple[str, ...]
    units: tuple[Result, ...]
    dtype: np.dtype[Any]
    shard_bytes: int
    fingerprint: str

    def tasks(self) -> list[Task]:
        """Return one task for each shard."""
        counts = [
            sum(each["documents"] for each in unit.facts["splits"][self.split].values())
            for unit in self.units
        ]
        starts = np.cumsum([0, *counts]).tolist()
        lengths = (self._unit(unit).lengths() for unit in self.units)
        stretches = plan_shards(lengths, self.shard_bytes // self.dtype.itemsize)
        return [
            self._task(number, self._slices(starts, start, stop), ids)
            for number, (start, stop, ids) in enumerate(stretches)
        ]

    def _unit(self, unit: Result) -> EncodedUnit:
        return EncodedUnit(unit.directory, self.split, self.dtype)

    def _slices(self, starts: list[int], start: int, stop: int) -> list[Slice]:
        return [
            Slice(unit, max(start, first) - first, min(stop, last) - first)
            for unit, first, last in zip(self.units, starts, starts[1:], strict=False)
            if max(start, first) < min(stop, last)
        ]

    def _task(self, number: int, slices: Sequence[Slice], tokens: int) -> Task:
        path = f"{self.source}/{self.split}/{number:05d}.tar"

        def perform(directory: Path, tick: Tick) -> Mapping[str, Any]:
            columns = {field: self._column(field, slices, Scratch(directory)) for field in self.fields}
            ids = [id_ for part in slices for id_ in self._unit(part.unit).ids(part.start, part.stop)]
            shard = write_shard(directory, path, ids, columns, self.dtype, self.fingerprint)
            tick(shard.record.bytes)
            return {"entry": encode_entry(shard)}

        pieces = [[part.unit.digest, part.start, part.stop] for part in slices]
        key = address("shard", _VERSION, path, pieces, self.fields, self.dtype.name, self.fingerprint)
        return Task(key, max(1, tokens * self.dtype.itemsize), perform)

    def _column(self, field: str, slices: Sequence[Slice], files: Scratch) -> Column:
        """Return the ids of a shard's documents, as a file, and where each ends; one slice is in memory."""
        units = [self._unit(part.unit) for part in slices]
        spans = [unit.ends(field, part.start, part.stop) for unit, part in zip(units, slices, strict=True)]
        counts = [int(ends_N[-1]) for _, ends_N in spans]
        found = (
            unit.tokens(field, first, count)
            for unit, (first, _), count in zip(units, spans, counts, strict=True)
        )
        starts = np.cumsum([0, *counts])
        ends = [ends_N + start for (_, ends_N), start in zip(spans, starts, strict=False)]
        return files.joined(found, self.dtype), np.concatenate(ends)


def write_shards(
    work: WorkDirectory, plans: Sequence[SplitPlan], unless: Callable[[], bool] | None = None
) -> list[list[Result]]:
    """Write the shards of every plan; return the results of each.

    ``unless`` says when they are no longer needed: once another process has finished the dataset.
    """
    tasks = [plan.tasks() for plan in plans]
    results = iter(work.run("shards", [task for group in tasks for task in group], unless))
    return [list(islice(results, len(group))) for group in tasks]


def link_shard(result: Result, directory: Path) -> IndexedShard:
    """Put a finished shard and its list of ids into the dataset; the result stays where it is."""
    for file in sorted(result.directory.rglob("*")):
        if file.is_file() and file.parent != result.directory:
            target = directory / file.relative_to(result.directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.hardlink_to(file)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                shutil.copyfile(file, target)
                fsync_file(target)
    return decode_entry(result.facts["entry"])
