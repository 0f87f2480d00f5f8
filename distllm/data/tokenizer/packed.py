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


def pack(rows: Iterable[list[int] | NDArray[np.uint32]]) -> Packed:
    """Concatenate the ids of documents; an iterator need not hold a row once the next is drawn."""
    ids, ends = array("I"), array("q")
    for row in rows:
        if isinstance(row, list):
            ids.fromlist(row)
        else:
            ids.frombytes(row.tobytes())
        ends.append(len(ids))
    return Packed(np.frombuffer(ids, dtype=np.uint32), np.frombuffer(ends, dtype=np.int64))


def join(parts: Iterable[Packed]) -> Packed:
    """Concatenate groups of documents."""
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
