"""Sorting and comparing more values than fit into memory.

Arrays with a value for each document are kept in files (`scratch`) and processed in spans. Only
arrays of uint64 are sorted, in place, which needs no memory. Values to be ordered are therefore
first replaced by their *place*, the number of different values below it, which has 32 bits: a pair of
places, or a place and the number of a document, then sorts as one uint64.

Shapes: N documents, M some of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from distllm.data.scratch import Scratch

MOST = 1 << 32
"""Documents that can be compared: fewer than this."""

HALF, LOW = np.uint64(32), np.uint64(MOST - 1)
SPAN = 1 << 18


def spans(size: int) -> Iterator[slice]:
    """Yield slices that cover ``size`` values."""
    for start in range(0, size, SPAN):
        yield slice(start, min(size, start + SPAN))


def places(values_N: NDArray[np.uint64], scratch: Scratch) -> NDArray[np.uint64]:
    """Return the place of each value among the different ones, [N]."""
    ordered_N = scratch.joined((values_N[span] for span in spans(values_N.size)), np.uint64)
    ordered_N.sort()
    distinct_M = _distinct(ordered_N)
    place_N = scratch.array(values_N.size, np.uint64)
    for span in spans(values_N.size):
        place_N[span] = np.searchsorted(distinct_M, values_N[span])
    return place_N


def places_of_pairs(
    high_N: NDArray[np.uint64], low_N: NDArray[np.uint64], scratch: Scratch
) -> NDArray[np.uint64]:
    """Return the place of each pair of places among the different pairs, ``high_N`` counting first."""
    return places(scratch.joined(packed(high_N, low_N), np.uint64), scratch)


def packed(high_N: NDArray[np.uint64], low_N: NDArray[np.uint64]) -> Iterator[NDArray[np.uint64]]:
    """Yield ``high_N`` above ``low_N`` in one number, a span at a time; both are below 2**32."""
    for span in spans(high_N.size):
        yield high_N[span] << HALF | low_N[span]


def numbers_in_order(place_N: NDArray[np.uint64], scratch: Scratch) -> NDArray[np.uint64]:
    """Return the numbers of the documents by their places, equal ones by number."""
    order_N = scratch.array(place_N.size, np.uint64)
    for span in spans(place_N.size):
        order_N[span] = place_N[span] << HALF | np.arange(span.start, span.stop, dtype=np.uint64)
    order_N.sort()
    for span in spans(place_N.size):
        order_N[span] &= LOW
    return order_N


def repeats_of(ordered_M: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
    """Yield the low halves of all numbers but the first of each high half, and the low half of that first.

    Args:
        ordered_M: ascending.
    """
    first = np.uint64(0)
    for span in spans(ordered_M.size):
        group_M, low_M = ordered_M[span] >> HALF, ordered_M[span] & LOW
        opens_M = np.empty(group_M.size, dtype=bool)
        opens_M[0] = not span.start or group_M[0] != ordered_M[span.start - 1] >> HALF
        opens_M[1:] = group_M[1:] != group_M[:-1]
        begin_M = np.maximum.accumulate(np.where(opens_M, np.arange(opens_M.size), -1))
        first_M = np.where(begin_M < 0, first, low_M[begin_M])  # the last group may have begun before
        first = first_M[-1]
        yield low_M[~opens_M], first_M[~opens_M]


def _distinct(ordered_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Move the first of each run of equal values to the front, and return those."""
    count, before = 0, None
    for span in spans(ordered_N.size):
        values = ordered_N[span].copy()
        opens = np.empty(values.size, dtype=bool)
        opens[0] = values[0] != before
        opens[1:] = values[1:] != values[:-1]
        kept = values[opens]
        ordered_N[count : count + kept.size] = kept
        count, before = count + kept.size, values[-1]
    return ordered_N[:count]
