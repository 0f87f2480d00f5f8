"""The global decision, kept in files and listed for one unit at a time.

Shapes: N documents of all units together, M some of them, D documents of one unit, L lines or paragraphs
that go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import overload

import numpy as np
from numpy.typing import NDArray

from distllm.data.dedup.grouping import HALF, LOW, spans
from distllm.data.dedup.signing import MAPPED_UNITS, SignedDocuments
from distllm.data.scratch import Scratch, append, mapped

DUPLICATE, DUPLICATE_ID, NEAR_DUPLICATE = "duplicate", "duplicate_id", "near_duplicate"
RULES = ("", DUPLICATE, DUPLICATE_ID, NEAR_DUPLICATE)
"""The rules by the numbers that arrays hold; 0 is none."""


@dataclass(slots=True)
class Decision:
    """What one unit loses.

    Attributes:
        kind: what pieces are, as in ``dedup.pieces``.
        documents: row → rule, and id of the document that is kept.
        pieces: row → numbers of the dropped lines or paragraphs.
    """

    kind: str
    documents: dict[int, tuple[str, str]] = field(default_factory=dict)
    pieces: dict[int, list[int]] = field(default_factory=dict)


class Verdicts:
    """The document kept instead of each (itself if it is kept), and the rule of `RULES`, [N], by rank.

    Rank is precedence, 0 the highest; a document is only replaced by one of lower rank.

    Args:
        order_N: numbers of the documents by rank.
        rank_N: ranks of the documents by number.
        files: for what there is of every document.
    """

    def __init__(self, order_N: NDArray[np.uint64], rank_N: NDArray[np.uint64], files: Scratch) -> None:
        self.order_N, self.rank_N, self._files = order_N, rank_N, files
        self.keeper_N: NDArray[np.uint64] = files.array(order_N.size, np.uint64)
        self.rule_N: NDArray[np.uint8] = files.array(order_N.size, np.uint8)
        self._keep(order_N.size)

    def stays(self, rank_M: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which of the documents are kept."""
        return np.asarray(self.keeper_N[rank_M] == rank_M)

    def mark(self, rank_M: NDArray[np.uint64], keeper_M: NDArray[np.uint64], rule: str) -> None:
        """Note that documents are dropped in favour of others."""
        self.keeper_N[rank_M] = keeper_M
        self.rule_N[rank_M] = RULES.index(rule)

    def staying_by_place(self, place_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the place (high bits) and rank (low bits) of each document kept so far, ascending, [M].

        Args:
            place_N: what is compared, by number.
        """
        with self._files.file() as stream:
            for span in spans(place_N.size):
                rank = self.rank_N[span]
                append(stream, (place_N[span] << HALF | rank)[self.stays(rank)])
            ordered_M: NDArray[np.uint64] = mapped(stream, np.uint64)
        ordered_M.sort()
        return ordered_M

    def settle(self, fixed: int) -> None:
        """Keep the first ``fixed`` documents, and replace each other one by a kept document."""
        for span in spans(self.keeper_N.size):
            for _ in range(2):  # each of the three rules may take what an earlier one made way for
                self.keeper_N[span] = self.keeper_N[self.keeper_N[span]]
        self._keep(fixed)

    def _keep(self, count: int) -> None:
        for span in spans(count):
            self.keeper_N[span] = np.arange(span.start, span.stop, dtype=np.uint64)


class Decisions(Sequence[Decision]):
    """What each unit loses, listed on request.

    Args:
        kind: what pieces are.
        units: all signed documents, whose numbers follow on across units.
        verdicts: the decision on each document.
        pieces_L: lines or paragraphs that go: number of the document, above its own in there, ascending.
    """

    def __init__(
        self,
        kind: str,
        units: Sequence[SignedDocuments],
        verdicts: Verdicts,
        pieces_L: NDArray[np.uint64],
    ) -> None:
        self._kind = kind
        self._starts = np.cumsum([0, *(unit.lengths().size for unit in units)])
        self._verdicts = verdicts
        self._ids = lru_cache(maxsize=MAPPED_UNITS)(lambda unit: units[unit].ids())
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
        verdicts = self._verdicts
        rank_D = verdicts.rank_N[start:stop]
        keeper_D = verdicts.keeper_N[rank_D]
        rows = (keeper_D != rank_D).nonzero()[0]
        keepers, rules = verdicts.order_N[keeper_D[rows]].tolist(), verdicts.rule_N[rank_D[rows]].tolist()
        for row, keeper, rule in zip(rows.tolist(), keepers, rules, strict=True):
            decision.documents[row] = RULES[rule], self._name(keeper)
        low, high = np.searchsorted(self._pieces_L, np.array([start, stop], dtype=np.uint64) << HALF).tolist()
        for piece in self._pieces_L[low:high].tolist():
            decision.pieces.setdefault((piece >> int(HALF)) - start, []).append(piece & int(LOW))
        return decision

    def _name(self, document: int) -> str:
        unit = int(np.searchsorted(self._starts, document, side="right")) - 1
        return str(self._ids(unit)[document - int(self._starts[unit])])


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
