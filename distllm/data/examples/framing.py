"""Framings: from a document with several fields to the segments of ids that a task trains on.

Shapes: N documents of a shard, E examples, P positions of one segment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distllm.data.batch import IGNORE_INDEX

Ids = NDArray[np.int64]
Record = Mapping[str, Ids]


@dataclass(frozen=True, slots=True)
class Segment:
    """Inputs and targets of consecutive positions that attend only to each other."""

    tokens_P: Ids
    targets_P: Ids

    @classmethod
    def predicting(cls, ids: Sequence[int] | Ids, first_scored: int) -> Segment:
        """Return the segment that predicts each id from those before it, from ``first_scored`` on."""
        ids_P = np.asarray(ids, dtype=np.int64)
        targets_P = ids_P[1:].copy()
        targets_P[: max(0, first_scored - 1)] = IGNORE_INDEX
        return cls(ids_P[:-1], targets_P)

    @classmethod
    def unscored(cls, ids: Sequence[int] | Ids) -> Segment:
        """Return a segment without loss."""
        ids_P = np.asarray(ids, dtype=np.int64)
        return cls(ids_P, np.full_like(ids_P, IGNORE_INDEX))

    def silenced(self) -> Segment:
        """Return the same inputs without loss."""
        return Segment.unscored(self.tokens_P)

    def cut(self, length: int) -> Segment:
        """Return the segment cut to its first positions."""
        return Segment(self.tokens_P[:length], self.targets_P[:length])


@dataclass(frozen=True, slots=True)
class Example:
    """One training example: segments that go into the same row, and a source for each, or none."""

    segments: tuple[Segment, ...]
    sources: tuple[Ids, ...] = ()


def forgotten(record: Record, eot_id: int) -> bool:
    """Whether a document was forgotten: all its ids are EOT."""
    return all(bool((ids == eot_id).all()) for ids in record.values())


@dataclass(frozen=True, slots=True)
class Measured:
    """The examples of a shard in order: the document, the number in the document, and the sizes of each."""

    row_E: NDArray[np.int64]
    part_E: NDArray[np.int64]
    tokens_E: NDArray[np.int64]
    source_E: NDArray[np.int64]

    @classmethod
    def one_each(cls, tokens_N: NDArray[np.int64], source_N: NDArray[np.int64] | None = None) -> Measured:
        """Return one example for each document, with these sizes."""
        nothing_N = np.zeros_like(tokens_N)
        sources = nothing_N if source_N is None else source_N
        return cls(np.arange(tokens_N.size), nothing_N, tokens_N, sources)

    def where(self, kept_E: NDArray[np.bool_]) -> Measured:
        """Return some of them."""
        return Measured(self.row_E[kept_E], self.part_E[kept_E], self.tokens_E[kept_E], self.source_E[kept_E])


class Framing(Protocol):
    """How a task frames documents. A pure function of the ids of a document.

    Attributes:
        fields: the fields that a document must have; none may be empty.
        one_a_row: whether a row holds one example only.
        has_source: whether an example reads a source.
    """

    fields: tuple[str, ...]
    one_a_row: bool
    has_source: bool

    def measure(self, sizes: Mapping[str, NDArray[np.int64]], read: Callable[[int], Record]) -> Measured:
        """Return the examples of a shard and their sizes.

        Args:
            sizes: the ids of each field of every document.
            read: the ids of one document; not called where the sizes are enough.

        Raises:
            DataError: a document cannot be framed.
        """

    def frame(self, record: Record, part: int) -> Example:
        """Return example ``part`` of a document."""
