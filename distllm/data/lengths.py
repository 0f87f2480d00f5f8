"""Sequence-length warm-up: early rows are cut into independent shorter segments.

Rows keep their shape, order and content; only the distance that attention and positions span grows,
in doublings, as a pure function of the tokens seen ("Curriculum Learning: A Regularization Method for
Efficient and Stable Billion-Scale GPT Model Pre-Training", arXiv:2108.06084).

Shapes: N positions of a run's order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class LengthWarmup:
    """From segments of ``start`` tokens to whole rows of ``seq_len`` over ``tokens`` tokens.

    ``seq_len`` is ``start`` times a power of two; every length before the last is used for an equal
    part of ``tokens``.
    """

    seq_len: int
    start: int
    tokens: int

    def length_at(self, position_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the longest segment of the samples at these positions."""
        doublings = (self.seq_len // self.start).bit_length() - 1
        seen_N = position_N * self.seq_len
        done_N = np.minimum(doublings, seen_N * doublings // max(1, self.tokens))
        length_N: NDArray[np.int64] = self.start << np.where(seen_N < self.tokens, done_N, doublings)
        return length_N

    def prefix(self, position: int) -> list[int]:
        """Return the first position of each length before ``position``, which determine the lengths."""
        doublings = (self.seq_len // self.start).bit_length() - 1
        firsts = [-(-self.tokens * done // (doublings * self.seq_len)) for done in range(1, doublings + 1)]
        return [self.start, *(first for first in firsts if first < position)]
