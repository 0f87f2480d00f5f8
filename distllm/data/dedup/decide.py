"""The global decision: which documents, lines and paragraphs go, and for which they make way.

Of equal or similar documents the one of highest *precedence* stays: lowest priority number of its
source, then longest, then lowest hash of its id. Precedence depends on the documents alone, so the
decision is the same for any order of input and any division into units.

Held in memory: about 80 bytes a document. Bands are compared one at a time, lines and paragraphs one
range of hashes at a time.

Shapes: N documents of all units together, D documents that stay so far, L pieces of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from distllm.config.schema_dedup import DedupConfig
from distllm.data.dedup.near import find_near_duplicates
from distllm.data.dedup.signing import SEPARATORS, SignedDocuments

DUPLICATE, DUPLICATE_ID, NEAR_DUPLICATE = "duplicate", "duplicate_id", "near_duplicate"
_PIECES_AT_ONCE = 1 << 24


@dataclass(frozen=True, slots=True)
class Unit:
    """The signed documents of one unit of a source, whose priority counts; ``fixed`` ones always stay."""

    signed: SignedDocuments
    source: str = ""
    priority: int = 0
    fixed: bool = False


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


def decide(units: Sequence[Unit], config: DedupConfig) -> list[Decision]:
    """Return what goes from each unit."""
    if not units:
        return []
    corpus = _Corpus(units)
    keeper_N = np.arange(corpus.size)
    rule_N = np.full(corpus.size, "", dtype=object)
    if config.documents:
        _mark(keeper_N, rule_N, corpus.digests, corpus.rank_N, DUPLICATE)
    _mark(keeper_N, rule_N, corpus.id_keys, corpus.rank_N, DUPLICATE_ID)
    if config.near:
        open_N = (keeper_N == np.arange(corpus.size)).nonzero()[0]
        similar = find_near_duplicates(
            [unit.signed for unit in units], open_N, corpus.rank_N, corpus.starts, config
        )
        for document, keeper in similar.items():
            keeper_N[document], rule_N[document] = keeper, NEAR_DUPLICATE
    for _ in range(2):  # each of the three rules may take what an earlier one made way for
        keeper_N = keeper_N[keeper_N]
    keeper_N[corpus.fixed_N] = corpus.fixed_N.nonzero()[0]
    decisions = [Decision(config.pieces) for _ in units]
    _note_documents(corpus, keeper_N, rule_N, decisions)
    if config.pieces in SEPARATORS:
        _decide_pieces(corpus, keeper_N == np.arange(corpus.size), decisions)
    return decisions


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
    def rank_N(self) -> NDArray[np.int64]:
        """The precedence of each document, 0 the highest; equal texts of equal ids share nothing else."""
        lengths_N = np.concatenate([unit.signed.lengths() for unit in self.units])
        low_N, high_N = self.digests
        order = np.lexsort((low_N, high_N, *self.id_keys, -lengths_N, self.priority_N, ~self.fixed_N))
        rank_N = np.empty(self.size, dtype=np.int64)
        rank_N[order] = np.arange(self.size)
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
    rule_N: NDArray[np.object_],
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
    rule_N[open_D[goes_D]] = rule


def _note_documents(
    corpus: _Corpus,
    keeper_N: NDArray[np.int64],
    rule_N: NDArray[np.object_],
    decisions: Sequence[Decision],
) -> None:
    goes = (keeper_N != np.arange(corpus.size)).nonzero()[0]
    names: dict[int, str] = {}
    keepers = np.unique(keeper_N[goes])
    keeper_units = np.searchsorted(corpus.starts, keepers, side="right") - 1
    cuts = (np.diff(keeper_units) != 0).nonzero()[0] + 1
    for wanted, unit in zip(np.split(keepers, cuts), np.unique(keeper_units), strict=False):
        ids, start = corpus.units[unit].signed.ids(), int(corpus.starts[unit])
        names.update({int(document): ids[int(document) - start] for document in wanted})
    units = np.searchsorted(corpus.starts, goes, side="right") - 1
    for document, unit in zip(goes.tolist(), units.tolist(), strict=True):
        row = document - int(corpus.starts[unit])
        decisions[unit].documents[row] = str(rule_N[document]), names[int(keeper_N[document])]


def _decide_pieces(corpus: _Corpus, stays_N: NDArray[np.bool_], decisions: Sequence[Decision]) -> None:
    """Of equal lines or paragraphs the first of the document of highest precedence stays."""
    total = sum(unit.signed.pieces()[0].size for unit in corpus.units)
    ranges = -(-total // _PIECES_AT_ONCE)
    for number in range(ranges):
        hashes, documents, places = [], [], []
        for unit, start in zip(corpus.units, corpus.starts, strict=False):
            hashes_L, places_L2 = unit.signed.pieces()
            documents_L = places_L2[:, 0] + start
            chosen_L = (hashes_L % np.uint64(ranges) == number) & stays_N[documents_L]
            hashes.append(hashes_L[chosen_L])
            documents.append(documents_L[chosen_L])
            places.append(places_L2[chosen_L, 1])
        _note_pieces(corpus, hashes, documents, places, decisions)
    for decision in decisions:
        for numbers in decision.pieces.values():
            numbers.sort()


def _note_pieces(
    corpus: _Corpus,
    hashes: Sequence[NDArray[np.uint64]],
    documents: Sequence[NDArray[np.int64]],
    places: Sequence[NDArray[np.int64]],
    decisions: Sequence[Decision],
) -> None:
    hash_L, document_L, place_L = np.concatenate(hashes), np.concatenate(documents), np.concatenate(places)
    order = np.lexsort((place_L, corpus.rank_N[document_L], hash_L))
    again = order[1:][hash_L[order][1:] == hash_L[order][:-1]]
    again = again[~corpus.fixed_N[document_L[again]]]
    units = np.searchsorted(corpus.starts, document_L[again], side="right") - 1
    for unit, document, place in zip(
        units.tolist(), document_L[again].tolist(), place_L[again].tolist(), strict=True
    ):
        decisions[unit].pieces.setdefault(document - int(corpus.starts[unit]), []).append(place)
