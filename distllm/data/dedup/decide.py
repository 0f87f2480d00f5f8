"""The global decision: which documents, lines and paragraphs are dropped, and which are kept instead.

Of equal or similar documents the one of highest *precedence* is kept: lowest priority number of its
source, then longest, then lowest hash of its id. Precedence depends only on the documents, so the
decision is the same for any order of input and any division into units.

Memory does not grow with the corpus: facts about every document are kept in mapped files (`scratch`),
about 150 bytes each during the decision; lines and paragraphs are sorted on disk by ranges of their
hashes (`spill`). Where precedence matters, documents are named by their rank (0 is the highest), so the
first of a group has the lowest number. The decision is listed for one unit at a time.

Shapes: N documents of all units together, D documents of one unit, M some of all, L pieces of text.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distllm.config.schema_dedup import DedupConfig
from distllm.data.dedup.decisions import DUPLICATE, DUPLICATE_ID, Decision, Decisions, Verdicts
from distllm.data.dedup.grouping import (
    HALF,
    MOST,
    numbers_in_order,
    places,
    places_of_pairs,
    repeats_of,
    spans,
)
from distllm.data.dedup.near import mark_near_duplicates
from distllm.data.dedup.signing import SEPARATORS, SignedDocuments
from distllm.data.dedup.spill import RECORD, repeats
from distllm.data.scratch import Scratch, append, mapped
from distllm.errors import DataError
from distllm.fsio import storage_errors

_PIECES_AT_ONCE = 1 << 19
_LENGTH_BITS = np.uint64(40)


@dataclass(frozen=True, slots=True)
class Unit:
    """The signed documents of one unit of a source, whose priority counts; ``fixed`` ones always stay."""

    signed: SignedDocuments
    source: str = ""
    priority: int = 0
    fixed: bool = False


def decide(units: Sequence[Unit], config: DedupConfig, scratch: Path | None = None) -> Sequence[Decision]:
    """Return what each unit loses.

    Args:
        units: the signed documents, in any order and division.
        config: what counts as a repetition.
        scratch: directory for temporary files, 150 bytes a document and 28 a line or paragraph;
            None for the system's.

    Raises:
        DataError: there are more documents than can be compared at once.
        StorageError: the disk is full or not writable.
    """
    if not units:
        return []
    with storage_errors(scratch or Path(tempfile.gettempdir())):
        files = Scratch(scratch)
        corpus = _Corpus(units, files)
        verdicts = Verdicts(corpus.order_N, corpus.rank_N, files)
        if config.documents:
            _mark(verdicts, corpus.digest_N, DUPLICATE)
        _mark(verdicts, corpus.id_N, DUPLICATE_ID)
        signed = [unit.signed for unit in units]
        if config.near:
            mark_near_duplicates(signed, corpus.starts, verdicts, config, files)
        verdicts.settle(corpus.fixed)
        pieces_L = np.zeros(0, dtype=np.uint64)
        if config.pieces in SEPARATORS:
            pieces_L = _pieces_that_go(corpus, verdicts, scratch)
        return Decisions(config.pieces, signed, verdicts, pieces_L)


class _Corpus:
    """The documents of all units under one numbering.

    Attributes:
        starts: the number of each unit's first document, and of all.
        fixed: how many always stay; they have the first ranks.
        digest_N: equal where texts are equal.
        id_N: equal where source and id are: an id is a name within one source.
        order_N: the numbers of the documents by rank.
        rank_N: the precedence of each document, 0 the highest.
    """

    def __init__(self, units: Sequence[Unit], files: Scratch) -> None:
        self.units, self.files = units, files
        counts = [unit.signed.lengths().size for unit in units]
        self.starts = np.cumsum([0, *counts])
        self.size = int(self.starts[-1])
        if self.size >= MOST:
            raise DataError(
                f"{self.size} documents are more than one decision on duplicates can take in ({MOST - 1})",
                where="dedup",
                remedy="prepare parts of the corpus one after another, each with dedup.against=[the others]",
            )
        self.fixed = sum(count for unit, count in zip(units, counts, strict=True) if unit.fixed)
        high, low = (
            places(files.joined((unit.signed.digests()[:, half] for unit in units), np.uint64), files)
            for half in (0, 1)
        )
        self.digest_N = places_of_pairs(high, low, files)
        sources = sorted({unit.source for unit in units})
        source_N = files.joined(
            (np.full(count, sources.index(unit.source)) for unit, count in zip(units, counts, strict=True)),
            np.uint64,
        )
        id_hash_N = places(files.joined((unit.signed.id_hashes() for unit in units), np.uint64), files)
        self.id_N = places_of_pairs(source_N, id_hash_N, files)
        standing_N = places(files.joined(self._standings(), np.uint64), files)
        named_N = places_of_pairs(standing_N, self.id_N, files)
        self.order_N = numbers_in_order(places_of_pairs(named_N, self.digest_N, files), files)
        self.rank_N = files.array(self.size, np.uint64)
        for span in spans(self.size):
            self.rank_N[self.order_N[span]] = np.arange(span.start, span.stop, dtype=np.uint64)

    def _standings(self) -> Iterator[NDArray[np.uint64]]:
        """Yield what precedence depends on first: fixed or not, priority of the source, length."""
        classes = sorted({(not unit.fixed, unit.priority) for unit in self.units})
        for unit in self.units:
            kind = np.uint64(classes.index((not unit.fixed, unit.priority)) + 1) << _LENGTH_BITS
            yield kind - unit.signed.lengths().astype(np.uint64)


def _mark(verdicts: Verdicts, place_N: NDArray[np.uint64], rule: str) -> None:
    """Drop, by ``rule``, all but the first of the remaining documents with equal place.

    Dropped documents are not compared, so they cannot cause another to be dropped.
    """
    for again_M, first_M in repeats_of(verdicts.staying_by_place(place_N)):
        verdicts.mark(again_M, first_M, rule)


def _pieces_that_go(corpus: _Corpus, verdicts: Verdicts, scratch: Path | None) -> NDArray[np.uint64]:
    """Return the repeated lines or paragraphs; the first in the document of highest precedence is kept.

    Returns:
        For each of the others the number of its document, above its number in there, ascending.
    """
    total = sum(unit.signed.pieces()[0].size for unit in corpus.units)
    with corpus.files.file() as stream:
        for again_L in repeats(_pieces(corpus, verdicts), total, _PIECES_AT_ONCE, scratch):
            gone_L = again_L[again_L["rank"] >= corpus.fixed]
            append(stream, corpus.order_N[gone_L["rank"]] << HALF | gone_L["place"])
        pieces_L = mapped(stream, np.uint64)
    pieces_L.sort()
    return pieces_L


def _pieces(corpus: _Corpus, verdicts: Verdicts) -> Iterator[NDArray[Any]]:
    """Yield the pieces of the documents that are kept, unit by unit."""
    for unit, start in zip(corpus.units, corpus.starts, strict=False):
        hashes_L, places_L2 = unit.signed.pieces()
        rank_L = corpus.rank_N[places_L2[:, 0] + start]
        chosen_L = verdicts.stays(rank_L)
        records_L = np.empty(int(chosen_L.sum()), dtype=RECORD)
        records_L["hash"] = hashes_L[chosen_L]
        records_L["rank"] = rank_L[chosen_L]
        records_L["place"] = places_L2[chosen_L, 1]
        yield records_L
