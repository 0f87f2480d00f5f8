"""What the global decision says, kept in arrays and spelled out for one unit at a time.

Shapes: N documents of all units together, G documents that go, K documents that others make way for,
L lines or paragraphs that go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from distllm.data.dedup.signing import SignedDocuments

DUPLICATE, DUPLICATE_ID, NEAR_DUPLICATE = "duplicate", "duplicate_id", "near_duplicate"
RULES = ("", DUPLICATE, DUPLICATE_ID, NEAR_DUPLICATE)
"""The rules by the numbers that arrays hold; 0 is none."""

GONE = np.dtype([("document", "<i8"), ("place", "<u4")])
"""A line or paragraph that goes: number of its document among all, its own number in there."""


@dataclass(slots=True)
class Decision:
    """What goes from one unit.

    Attributes:
        kind: what pieces are, as in ``dedup.pieces``.
        documents: row → rule and id of the document that stays.
        pieces: row → numbers of the lines or paragraphs that go.
    """

    kind: str
    documents: dict[int, tuple[str, str]] = field(default_factory=dict)
    pieces: dict[int, list[int]] = field(default_factory=dict)


class Decisions(Sequence[Decision]):
    """What goes from each unit, spelled out when it is asked for.

    Args:
        kind: what pieces are.
        units: all signed documents, whose numbers follow on across units.
        keeper_N: for which document each makes way; itself if it stays.
        rule_N: by which of `RULES`.
        pieces_L: of `GONE`, ascending.
    """

    def __init__(
        self,
        kind: str,
        units: Sequence[SignedDocuments],
        keeper_N: NDArray[np.int64],
        rule_N: NDArray[np.uint8],
        pieces_L: NDArray[Any],
    ) -> None:
        self._kind = kind
        self._starts = np.cumsum([0, *(unit.lengths().size for unit in units)])
        self._gone_G = (keeper_N != np.arange(keeper_N.size)).nonzero()[0]
        self._keeper_G, self._rule_G = keeper_N[self._gone_G], rule_N[self._gone_G]
        self._names = _Names(units, self._starts, np.unique(self._keeper_G))
        self._pieces_L = pieces_L

    def __len__(self) -> int:
        return self._starts.size - 1

    @overload
    def __getitem__(self, index: int) -> Decision: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Decision]: ...
    def __getitem__(self, index: int | slice) -> Decision | Sequence[Decision]:
        if isinstance(index, slice):
            return _Selected(self, range(len(self))[index])
        unit = range(len(self))[index]
        start, stop = self._starts[unit : unit + 2].tolist()
        decision = Decision(self._kind)
        low, high = np.searchsorted(self._gone_G, [start, stop]).tolist()
        for number in range(low, high):
            rule = RULES[self._rule_G[number]]
            decision.documents[int(self._gone_G[number]) - start] = rule, self._names[self._keeper_G[number]]
        low, high = np.searchsorted(self._pieces_L["document"], [start, stop]).tolist()
        for document, place in self._pieces_L[low:high].tolist():
            decision.pieces.setdefault(document - start, []).append(place)
        return decision


@dataclass(frozen=True, slots=True)
class _Selected(Sequence[Decision]):
    """Some of all decisions, by number."""

    decisions: Decisions
    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Decision: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Decision]: ...
    def __getitem__(self, index: int | slice) -> Decision | Sequence[Decision]:
        if isinstance(index, slice):
            return _Selected(self.decisions, self.numbers[index])
        return self.decisions[self.numbers[index]]


class _Names:
    """The ids of some documents, as one string of bytes."""

    def __init__(
        self, units: Sequence[SignedDocuments], starts: NDArray[np.int64], documents_K: NDArray[np.int64]
    ) -> None:
        self._documents_K = documents_K
        units_K = np.searchsorted(starts, documents_K, side="right") - 1
        parts: list[bytes] = []
        sizes: list[NDArray[np.int64]] = [np.zeros(1, dtype=np.int64)]
        for unit in np.unique(units_K).tolist():
            ids, start = units[unit].ids(), int(starts[unit])
            low, high = np.searchsorted(units_K, [unit, unit + 1]).tolist()
            rows = (documents_K[low:high] - start).tolist()
            names = [ids[row].encode("utf-8", "surrogatepass") for row in rows]
            parts.append(b"".join(names))
            sizes.append(np.fromiter(map(len, names), dtype=np.int64, count=len(names)))
        self._ends = np.cumsum(np.concatenate(sizes))
        self._text = b"".join(parts)

    def __getitem__(self, document: np.int64) -> str:
        place = int(np.searchsorted(self._documents_K, document))
        return self._text[self._ends[place] : self._ends[place + 1]].decode("utf-8", "surrogatepass")
