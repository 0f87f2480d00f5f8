"""Ids of many documents as two arrays.

Shapes: D documents, M ids.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Backend = Literal["auto", "tokenizers", "gigatoken"]
Text = TypeVar("Text", str, bytes)


class Packed(NamedTuple):
    """Ids of documents one after another (uint32), and where each document ends (int64)."""

    ids_M: NDArray[np.uint32]
    ends_D: NDArray[np.int64]


def pack_lists(rows: Iterable[list[int]]) -> Packed:
    """Join lists of ids, each of which may be forgotten before the next is made."""
    ids, ends = array("I"), array("q")
    for row in rows:
        ids.fromlist(row)
        ends.append(len(ids))
    return Packed(np.frombuffer(ids, dtype=np.uint32), np.frombuffer(ends, dtype=np.int64))


def pack(rows: Sequence[NDArray[np.uint32]]) -> Packed:
    """Join rows of ids."""
    ends_D = np.cumsum(np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)), dtype=np.int64)
    ids_M = np.empty(int(ends_D[-1]) if rows else 0, dtype=np.uint32)
    start = 0
    for row, end in zip(rows, ends_D.tolist(), strict=True):
        ids_M[start:end] = row
        start = end
    return Packed(ids_M, ends_D)


def join(parts: Iterable[Packed]) -> Packed:
    """Join the ids of groups of documents."""
    found = list(parts)
    if not found:
        return Packed(np.zeros(0, dtype=np.uint32), np.zeros(0, dtype=np.int64))
    shifts = np.cumsum([0, *(part.ids_M.size for part in found)])
    ends_D = np.concatenate([part.ends_D + shift for part, shift in zip(found, shifts, strict=False)])
    return Packed(np.concatenate([part.ids_M for part in found]), ends_D)


def groups(texts: Sequence[Text], size: int) -> Iterator[list[Text]]:
    """Yield runs of texts of at most ``size`` characters or bytes together, or of one text."""
    group: list[Text] = []
    held = 0
    for text in texts:
        if group and held + len(text) > size:
            yield group
            group, held = [], 0
        group.append(text)
        held += len(text)
    if group:
        yield group
