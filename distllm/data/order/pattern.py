"""Which source each slot of a mixture belongs to: integer quotas in a block, spread evenly.

The slots are assigned by Tijdeman's rule ("The chairman assignment problem", 1980): of the sources
whose next turn has come, the one with the earliest deadline. With k sources and shares w_s, after
every prefix of n slots each source was drawn n * w_s times, with a deviation of at most
1 - 1 / (2k - 2). No other rule has a lower bound for all shares. A block repeats, so the bound always holds.

A block is stored as a table. Shares that need too long a table, such as sources drawn in proportion to
their samples, use ``TreePattern`` instead, with a slightly wider bound.

Shapes: B slots of a block, N slots.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import gcd, lcm
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distllm.data.order.tree import LARGEST_TOTAL, TreePattern

LARGEST_BLOCK = 1 << 14


def quotas_of(weights: Sequence[Fraction]) -> tuple[int, ...]:
    """Return integer quotas, without a common divisor, in proportion to weights of any unit.

    They are exact if they are ``LARGEST_TOTAL`` together or fewer. Otherwise each share is right to
    1 / ``LARGEST_TOTAL`` (largest remainders), and no positive weight gets none.

    Raises:
        ValueError: a weight is negative, or none is positive.
    """
    total = sum(weights, Fraction(0))
    if total <= 0 or min(weights) < 0:
        raise ValueError(f"no mixture of the weights {', '.join(map(str, weights))}")
    shares = [weight / total for weight in weights]
    block = lcm(*(share.denominator for share in shares))
    if block <= LARGEST_TOTAL:
        return tuple(int(share * block) for share in shares)
    exact = [share * LARGEST_TOTAL for share in shares]
    quotas = [max(int(value), int(value > 0)) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda s: (quotas[s] - exact[s], s))
    missing = LARGEST_TOTAL - sum(quotas)
    for place in range(missing):
        quotas[by_remainder[place]] += 1
    for _ in range(-missing):  # more sources were lifted to one slot than slots were left
        quotas[max(range(len(quotas)), key=lambda s: quotas[s])] -= 1
    divisor = gcd(*quotas)
    return tuple(quota // divisor for quota in quotas)


class Pattern(Protocol):
    """The endless slots of a mixture.

    Attributes:
        quotas: slots of each source in ``sum(quotas)`` slots.
    """

    quotas: tuple[int, ...]

    def draw(self, slot_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the source of each slot, and how many earlier slots belong to the same source."""

    def drawn(self, source: int, slots: int) -> int:
        """Return how many of the first ``slots`` slots belong to ``source``."""

    def slot_of(self, source: int, ordinal: int) -> int:
        """Return the slot in which ``source`` is drawn for the ``ordinal``-th time, counted from 0.

        The source must have a quota.
        """


class BlockPattern:
    """See ``Pattern``: the slots of one block, which repeats.

    Attributes:
        quotas: slots of each source in a block.
        block: their sum, B.
        source_B: the source of each slot.
    """

    def __init__(self, quotas: tuple[int, ...]) -> None:
        self.quotas = quotas
        self.block = sum(quotas)
        self.source_B = _chairman(quotas)
        self._places = [np.flatnonzero(self.source_B == source) for source in range(len(quotas))]
        self._rank_B = np.empty(self.block, dtype=np.int64)
        for place_Q in self._places:
            self._rank_B[place_Q] = np.arange(place_Q.size)

    def draw(self, slot_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See ``Pattern``."""
        block_N, place_N = np.divmod(slot_N, self.block)
        source_N = self.source_B[place_N]
        return source_N, block_N * np.array(self.quotas, dtype=np.int64)[source_N] + self._rank_B[place_N]

    def drawn(self, source: int, slots: int) -> int:
        """See ``Pattern``."""
        blocks, rest = divmod(slots, self.block)
        return blocks * self.quotas[source] + int(np.searchsorted(self._places[source], rest))

    def slot_of(self, source: int, ordinal: int) -> int:
        """See ``Pattern``."""
        blocks, rank = divmod(ordinal, self.quotas[source])
        return blocks * self.block + int(self._places[source][rank])


@lru_cache(maxsize=64)
def pattern_of(quotas: tuple[int, ...]) -> Pattern:
    """Return the pattern of ``quotas``; patterns do not change and are shared."""
    return BlockPattern(quotas) if sum(quotas) <= LARGEST_BLOCK else TreePattern(quotas)


def _chairman(quotas: tuple[int, ...]) -> NDArray[np.int64]:
    """Assign each slot to the source with the earliest deadline among those whose turn has come.

    Turn x (from 0) of a source of quota q among k may come from slot B (1 + cx) / (cq) on, counted
    from 1, and is due by B (c (x + 1) - 1) / (cq), where c = 2k - 2; all in exact integers.
    """
    drawn = [source for source, quota in enumerate(quotas) if quota]
    block, common = sum(quotas), lcm(*(quotas[source] for source in drawn))
    if len(drawn) == 1:
        return np.full(block, drawn[0], dtype=np.int64)
    c = 2 * len(drawn) - 2
    turns = sorted(
        (-(-block * (1 + c * x) // (c * quotas[s])), (c * (x + 1) - 1) * (common // quotas[s]), s)
        for s in drawn
        for x in range(quotas[s])
    )
    source_B = np.empty(block, dtype=np.int64)
    waiting: list[tuple[int, int]] = []
    come = 0
    for slot in range(1, block + 1):
        while come < block and turns[come][0] <= slot:
            heapq.heappush(waiting, turns[come][1:])
            come += 1
        source_B[slot - 1] = heapq.heappop(waiting)[1]
    return source_B
