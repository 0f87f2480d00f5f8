"""The micro-batches of one rank, as plain arrays.

Shapes: B rows of a micro-batch, T = seq_len positions, S = source_len positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distllm.data.manifest import Manifest
from distllm.data.order import SourceSamples

IGNORE_INDEX = -100


@dataclass(frozen=True, slots=True)
class Source:
    """The source of an example besides its own tokens: a text to translate, a query.

    Segment ``k`` of a row belongs to segment ``k`` of the row's tokens. The last column of every row
    is padding.

    Attributes:
        tokens_BS: ids.
        positions_BS: place in the segment.
        segments_BS: 0, 1, 2 … along a row, never decreasing; padding is the last.
    """

    tokens_BS: NDArray[np.int32]
    positions_BS: NDArray[np.int32]
    segments_BS: NDArray[np.int32]

    def __getitem__(self, rows: slice | list[int]) -> Source:
        """Return some rows; of a slice, on the same memory."""
        return Source(self.tokens_BS[rows], self.positions_BS[rows], self.segments_BS[rows])


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch of one rank.

    Attributes:
        tokens_BT: inputs.
        targets_BT: the id that follows each input, or what else the task predicts there;
            ``IGNORE_INDEX`` where there is no loss.
        positions_BT: place in the segment; restarts at 0 with each.
        segments_BT: 0, 1, 2 … along a row, never decreasing.
        sample_ids_B: position of each row in the run's global order.
        source: the sources of the rows, for tasks that have them.
    """

    tokens_BT: NDArray[np.int32]
    targets_BT: NDArray[np.int32]
    positions_BT: NDArray[np.int32]
    segments_BT: NDArray[np.int32]
    sample_ids_B: NDArray[np.int64]
    source: Source | None = None

    def rows(self, start: int, stop: int) -> Batch:
        """Return the rows ``start`` to ``stop`` as a batch on the same memory."""
        return self[start:stop]

    def __getitem__(self, rows: slice | list[int]) -> Batch:
        """Return some rows; of a slice, on the same memory."""
        return Batch(
            self.tokens_BT[rows],
            self.targets_BT[rows],
            self.positions_BT[rows],
            self.segments_BT[rows],
            self.sample_ids_B[rows],
            None if self.source is None else self.source[rows],
        )


class Split(Protocol):
    """Samples with random access; see `PackedSplit`."""

    manifest: Manifest
    seq_len: int
    num_tokens: int
    num_samples: int
    bytes_per_token: float
    sources: tuple[SourceSamples, ...]

    @property
    def padding(self) -> float:
        """The share of all positions that is padding."""

    def numbers(self, source_N: NDArray[np.int64], sample_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers in the split of samples that are numbered within their sources."""

    def batch(self, samples_B: NDArray[np.int64], sample_ids_B: NDArray[np.int64]) -> Batch:
        """Return some samples as one batch."""

    def read(
        self,
        samples_B: NDArray[np.int64],
        sample_ids_B: NDArray[np.int64],
        longest_B: NDArray[np.int64] | None = None,
    ) -> tuple[Batch, int]:
        """Return some samples as one batch, and how many of them are damaged."""

    def samples_with(self, source: int, shard: int, start: int, stop: int) -> list[int]:
        """Return the samples that have one of these ids of a shard."""
