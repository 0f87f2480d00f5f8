"""Ids of many documents as two arrays.

Shapes: D documents, M ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Backend = Literal["auto", "tokenizers", "gigatoken"]


class Packed(NamedTuple):
    """Ids of documents one after another (uint32), and where each document ends (int64)."""

    ids_M: NDArray[np.uint32]
    ends_D: NDArray[np.int64]


def pack(rows: Sequence[Sequence[int] | NDArray[np.uint32]]) -> Packed:
    """Join rows of ids."""
    ends_D = np.cumsum(np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)), dtype=np.int64)
    ids_M = np.empty(int(ends_D[-1]) if rows else 0, dtype=np.uint32)
    start = 0
    for row, end in zip(rows, ends_D.tolist(), strict=True):
        ids_M[start:end] = row
        start = end
    return Packed(ids_M, ends_D)
