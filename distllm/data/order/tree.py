"""Slots of a mixture whose shares need more slots than a table can hold, assigned by arithmetic.

The sources are the leaves of a binary tree. A node of weight w whose left side weighs a gives the
left side floor((n * a + w // 2) / w) of its first n slots, and the right side the others. A split
deviates from its share by at most half a slot, and passes a deviation on in proportion to the share of
the side. So after every prefix a source deviates by at most 1 / 2 + p / 2 + p p' / 2 + … slots, over the
shares p of its path. The sides have nearly equal weight, which keeps the deviation below 1 for up to
three sources and below 3 / 2 for up to eight. After a multiple of the total it is 0.

Shapes: N slots, C of them at one node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

LARGEST_TOTAL = (1 << 32) - 1  # the product of two smaller numbers and half of one is below 2**64


@dataclass(frozen=True, slots=True)
class _Split:
    """A node: ``share`` of ``total`` slots go left."""

    left: _Node
    right: _Node
    share: int
    total: int

    def left_of(self, slots_C: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return how many of the first ``slots_C`` slots go left."""
        total, share = np.uint64(self.total), np.uint64(self.share)
        blocks_C, rest_C = np.divmod(slots_C, total)
        return blocks_C * share + (rest_C * share + np.uint64(self.total // 2)) // total


_Node: TypeAlias = int | _Split


class TreePattern:
    """See ``Pattern``.

    Args:
        quotas: slots of each source in ``sum(quotas)``, which is at most ``LARGEST_TOTAL``.

    Raises:
        ValueError: there are no quotas, or too large ones.
    """

    def __init__(self, quotas: tuple[int, ...]) -> None:
        if not 1 <= sum(quotas) <= LARGEST_TOTAL or min(quotas) < 0:
            raise ValueError(f"quotas of 1 to {LARGEST_TOTAL} together, not {quotas}")
        self.quotas = quotas
        self._root = _grow(sorted((source for source, q in enumerate(quotas) if q), key=self._rank), quotas)
        self._paths: dict[int, list[tuple[int, int, int]]] = {}
        self._note_paths(self._root, [])

    def draw(self, slot_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See ``Pattern``."""
        source_N, ordinal_N = np.empty_like(slot_N), np.empty_like(slot_N)
        waiting = [(self._root, np.arange(slot_N.size), slot_N.astype(np.uint64))]
        while waiting:
            node, place_C, slot_C = waiting.pop()
            if isinstance(node, int):
                source_N[place_C] = node
                ordinal_N[place_C] = slot_C.astype(np.int64)
            elif place_C.size:
                before_C = node.left_of(slot_C)
                left_C = node.left_of(slot_C + np.uint64(1)) > before_C
                waiting.append((node.left, place_C[left_C], before_C[left_C]))
                waiting.append((node.right, place_C[~left_C], (slot_C - before_C)[~left_C]))
        return source_N, ordinal_N

    def drawn(self, source: int, slots: int) -> int:
        """See ``Pattern``."""
        if not self.quotas[source]:
            return 0
        for share, total, offset in self._paths[source]:
            slots = (slots * share + offset) // total
        return slots

    def slot_of(self, source: int, ordinal: int) -> int:
        """See ``Pattern``."""
        for share, total, offset in reversed(self._paths[source]):
            ordinal = -((offset - (ordinal + 1) * total) // share) - 1
        return ordinal

    def _rank(self, source: int) -> tuple[int, int]:
        return -self.quotas[source], source

    def _note_paths(self, node: _Node, path: list[tuple[int, int, int]]) -> None:
        """Note for every source how the count of its slots follows, node by node, from all slots."""
        if isinstance(node, int):
            self._paths[node] = path
            return
        share, total, offset = node.share, node.total, node.total // 2
        self._note_paths(node.left, [*path, (share, total, offset)])
        # n - floor((n * share + offset) / total), written in the form of the left side
        self._note_paths(node.right, [*path, (total - share, total, total - 1 - offset)])


def _grow(sources: list[int], quotas: tuple[int, ...]) -> _Node:
    """Split sources, given by descending quota, into two sides: each goes to the lighter one."""
    if len(sources) == 1:
        return sources[0]
    sides: tuple[list[int], list[int]] = ([], [])
    weights = [0, 0]
    for source in sources:
        lighter = int(weights[1] < weights[0])
        sides[lighter].append(source)
        weights[lighter] += quotas[source]
    return _Split(_grow(sides[0], quotas), _grow(sides[1], quotas), weights[0], sum(weights))
