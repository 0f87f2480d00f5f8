"""The global decision: which documents, lines and paragraphs go, and for which they make way.

Of equal or similar documents the one of highest *precedence* stays: lowest priority number of its
source, then longest, then lowest hash of its id. Precedence depends on the documents alone, so the
decision is the same for any order of input and any division into units.

Held in memory: about 100 bytes a document, 50 more for one that others make way for, and 12 bytes a
line or paragraph that goes. Bands are compared one at a time; lines and paragraphs are sorted by ranges
of their hashes on the disk (`spill`). What goes is spelled out for one unit at a time.

Shapes: N documents of all units together, D documents that stay so far, G documents that go, K documents
that others make way for, L pieces of text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distllm.config.schema_dedup import DedupConfig
from distllm.data.dedup.decisions import (
    DUPLICATE,
    DUPLICATE_ID,
    GONE,
    NEAR_DUPLICATE,
    RULES,
    Decision,
    Decisions,
)
from distllm.data.dedup.near import find_near_duplicates
from distllm.data.dedup.signing import SEPARATORS, SignedDocuments
from distllm.data.dedup.spill import RECORD, repeats

_PIECES_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class Unit:
    """The signed documents of one unit of a source, whose priority counts; ``fixed`` ones always stay."""

    signed: SignedDocuments
    source: str = ""
    priority: int = 0
    fixed: bool = False


def decide(units: Sequence[Unit], config: DedupConfig, scratch: Path | None = None) -> Sequence[Decision]:
    """Return what goes from each unit.

    Args:
        units: the signed documents, in any order and division.
        config: what counts as a repetition.
        scratch: directory for temporary files, 20 bytes a line or paragraph; None for the system's.

    Raises:
        StorageError: the disk is full or not writable.
    """
    if not units:
        return []
    corpus = _Corpus(units)
    keeper_N = np.arange(corpus.size)
    rule_N = np.zeros(corpus.size, dtype=np.uint8)
    if config.documents:
        _mark(keeper_N, rule_N, corpus.digests, corpus.rank_N, DUPLICATE)
    _mark(keeper_N, rule_N, corpus.id_keys, corpus.rank_N, DUPLICATE_ID)
    if config.near:
        open_N = (keeper_N == np.arange(corpus.size)).nonzero()[0]
        signed = [unit.signed for unit in units]
        similar_N = find_near_duplicates(signed, open_N, corpus.order_N, corpus.starts, config)
        rule_N[similar_N != np.arange(corpus.size)] = RULES.index(NEAR_DUPLICATE)
        keeper_N[open_N] = similar_N[open_N]
    for _ in range(2):  # each of the three rules may take what an earlier one made way for
        keeper_N = keeper_N[keeper_N]
    keeper_N[corpus.fixed_N] = corpus.fixed_N.nonzero()[0]
    pieces_L = np.empty(0, dtype=GONE)
    if config.pieces in SEPARATORS:
        pieces_L = _pieces_that_go(corpus, keeper_N == np.arange(corpus.size), scratch)
    return Decisions(config.pieces, [unit.signed for unit in units], keeper_N, rule_N, pieces_L)


class _Corpus:
    """The documents of all units under one numbering."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = units
        counts = [unit.signed.lengths().size for unit in units]
        self.starts = np.cumsum([0, *counts])
        self.size = int(self.starts[-1])
        self.fixed_N = np.repeat([unit.fixed for unit in units], counts)
        self.priority_N = np.repeat(np.array([unit.priority for unit in units], dtype=np.int64), counts)

    @cached_property
    def digests(self) -> list[NDArray[np.uint64]]:
        """The two halves of the digest of each text."""
        digests_N2 = np.concatenate([unit.signed.digests() for unit in self.units])
        return [digests_N2[:, 0], digests_N2[:, 1]]

    @cached_property
    def id_keys(self) -> list[NDArray[np.uint64]]:
        """The hash of each id, and its source: an id is a name within one source."""
        sources = sorted({unit.source for unit in self.units})
        counts = np.diff(self.starts)
        source_N = np.repeat([np.uint64(sources.index(unit.source)) for unit in self.units], counts)
        return [np.concatenate([unit.signed.id_hashes() for unit in self.units]), source_N]

    @cached_property
    def order_N(self) -> NDArray[np.int64]:
        """The documents by precedence, the highest first; only equal texts of equal ids share one."""
        lengths_N = np.concatenate([unit.signed.lengths() for unit in self.units])
        low_N, high_N = self.digests
        return np.lexsort((low_N, high_N, *self.id_keys, -lengths_N, self.priority_N, ~self.fixed_N))

    @cached_property
    def rank_N(self) -> NDArray[np.int64]:
        """The precedence of each document, 0 the highest."""
        rank_N = np.empty(self.size, dtype=np.int64)
        rank_N[self.order_N] = np.arange(self.size)
        return rank_N


def _first_of_equal(keys: Sequence[NDArray[np.uint64]], rank_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each document the one of highest precedence among those with the same keys."""
    order = np.lexsort((rank_N, *keys))
    changes = np.zeros(order.size, dtype=bool)
    for key in keys:
        ordered = key[order]
        changes[1:] |= ordered[1:] != ordered[:-1]
    changes[:1] = True
    first = np.maximum.accumulate(np.where(changes, np.arange(order.size), 0))
    keeper_N = np.empty(order.size, dtype=np.int64)
    keeper_N[order] = order[first]
    return keeper_N


def _mark(
    keeper_N: NDArray[np.int64],
    rule_N: NDArray[np.uint8],
    keys: Sequence[NDArray[np.uint64]],
    rank_N: NDArray[np.int64],
    rule: str,
) -> None:
    """Note which of the documents that are left make way by ``rule``.

    Only those that are left are compared: a document that has gone must take no other with it.
    """
    open_D = (keeper_N == np.arange(keeper_N.size)).nonzero()[0]
    found_D = open_D[_first_of_equal([key[open_D] for key in keys], rank_N[open_D])]
    goes_D = found_D != open_D
    keeper_N[open_D[goes_D]] = found_D[goes_D]
    rule_N[open_D[goes_D]] = RULES.index(rule)


def _pieces_that_go(corpus: _Corpus, stays_N: NDArray[np.bool_], scratch: Path | None) -> NDArray[Any]:
    """Of equal lines or paragraphs the first of the document of highest precedence stays."""
    total = sum(unit.signed.pieces()[0].size for unit in corpus.units)
    found = [np.empty(0, dtype=GONE)]
    for again_L in repeats(_pieces(corpus, stays_N), total, _PIECES_AT_ONCE, scratch):
        gone_L = np.empty(again_L.size, dtype=GONE)
        gone_L["document"], gone_L["place"] = corpus.order_N[again_L["rank"]], again_L["place"]
        found.append(gone_L[~corpus.fixed_N[gone_L["document"]]])
    pieces_L = np.concatenate(found)
    pieces_L.sort(order=("document", "place"))
    return pieces_L


def _pieces(corpus: _Corpus, stays_N: NDArray[np.bool_]) -> Iterator[NDArray[Any]]:
    """Yield the pieces of the documents that stay, unit by unit."""
    for unit, start in zip(corpus.units, corpus.starts, strict=False):
        hashes_L, places_L2 = unit.signed.pieces()
        documents_L = places_L2[:, 0] + start
        chosen_L = stays_N[documents_L]
        records_L = np.empty(int(chosen_L.sum()), dtype=RECORD)
        records_L["hash"] = hashes_L[chosen_L]
        records_L["rank"] = corpus.rank_N[documents_L[chosen_L]]
        records_L["place"] = places_L2[chosen_L, 1]
        yield records_L
