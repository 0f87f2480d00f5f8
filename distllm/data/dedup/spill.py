"""Finding repeats among more records than fit into memory.

A bounded number of records is sorted at a time, which finds the repeats within one batch. The first
record of each hash is written to a file for its range of hashes, and each file is sorted again. So a
frequent hash takes at most one record per batch, and every file has a bounded size.

Shapes: L records, P parts (files).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distllm.data.scratch import append
from distllm.fsio import storage_errors

RECORD = np.dtype([("hash", "<u8"), ("rank", "<i8"), ("place", "<u4")])
"""A hash, and where it occurs: precedence of the document, number within the document."""

_HALF = np.uint64(32)


def repeats(
    batches: Iterable[NDArray[Any]], total: int, at_once: int, scratch: Path | None
) -> Iterator[NDArray[Any]]:
    """Yield all records but the first of each hash, by ``rank`` and then ``place``, in arrays.

    Args:
        batches: arrays of `RECORD`, of any size, ``total`` records together.
        total: decides the number of files.
        at_once: records to sort together; memory is about 80 bytes each, beside one batch.
        scratch: directory for the files, 20 bytes a record; None for the system's.

    Raises:
        StorageError: the disk is full or not writable.
    """
    parts = -(-total // at_once)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="spill-") as name:
        directory = Path(name)
        with storage_errors(directory):
            for batch_L in _regrouped(batches, at_once):
                firsts_L, again_L = _split(batch_L)
                yield again_L
                if parts > 1:
                    _append(directory, firsts_L, parts)
            for part in range(parts):
                file = directory / f"{part}.bin"
                if file.is_file():
                    yield _split(np.fromfile(file, dtype=RECORD))[1]
                    file.unlink()


def _regrouped(batches: Iterable[NDArray[Any]], at_once: int) -> Iterator[NDArray[Any]]:
    """Yield the same records in arrays of ``at_once``, the last one shorter."""
    waiting: list[NDArray[Any]] = []
    count = 0
    for batch_L in batches:
        start = 0
        while count + batch_L.size - start >= at_once:
            stop = start + at_once - count
            yield np.concatenate([*waiting, batch_L[start:stop]])
            waiting, count, start = [], 0, stop
        waiting.append(batch_L[start:])
        count += batch_L.size - start
    if count:
        yield np.concatenate(waiting)


def _split(records_L: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the first record of each hash, and the others."""
    ordered_L = records_L[np.lexsort((records_L["place"], records_L["rank"], records_L["hash"]))]
    first_L = np.ones(ordered_L.size, dtype=bool)
    first_L[1:] = ordered_L["hash"][1:] != ordered_L["hash"][:-1]
    return ordered_L[first_L], ordered_L[~first_L]


def _append(directory: Path, records_L: NDArray[Any], parts: int) -> None:
    """Append ``records_L``, which ascend by hash, to the files of their ranges of hashes."""
    part_L = (records_L["hash"] >> _HALF) * np.uint64(parts) >> _HALF
    cuts_P = np.searchsorted(part_L, np.arange(parts + 1, dtype=np.uint64))
    for part in range(parts):
        if cuts_P[part] < cuts_P[part + 1]:
            with (directory / f"{part}.bin").open("ab") as stream:
                append(stream, records_L[cuts_P[part] : cuts_P[part + 1]])
