"""Nearly equal documents: candidates by bands of MinHash signatures, each checked against its keeper.

In every band the documents of one bucket are compared with the bucket's first by precedence. A
document is dropped only if its estimated similarity *to a document that is kept* reaches the bound: if
the first has been dropped itself, the comparison is with the document that replaced it. So a chain of
documents, each similar to the next, does not become one cluster whose ends have nothing in common.

Documents are named by their rank; 0 is the highest precedence. Pairs of a document and the first of its
bucket (nearly always the same in all bands) are kept in a file (`scratch`), 8 bytes per pair and band.

Shapes: N documents of all units, M some of them, E pairs, P permutations.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from distllm.config.schema_dedup import DedupConfig
from distllm.data.dedup.decisions import NEAR_DUPLICATE, Verdicts
from distllm.data.dedup.grouping import HALF, LOW, places, repeats_of, spans
from distllm.data.dedup.signing import MAPPED_UNITS, SignedDocuments
from distllm.data.scratch import Scratch, append, mapped


def mark_near_duplicates(
    units: Sequence[SignedDocuments],
    starts: NDArray[np.int64],
    verdicts: Verdicts,
    config: DedupConfig,
    files: Scratch,
) -> None:
    """Drop each document that is similar to one of higher precedence.

    Args:
        units: the signatures.
        starts: number of each unit's first document.
        verdicts: documents dropped by another rule are not compared.
        config: bands, rows and the bound.
        files: for what there is of every document.
    """
    signatures = _Signatures(units, starts)
    with files.file() as stream:
        for band in range(config.bands):
            place_N = places(files.joined((unit.bands()[band] for unit in units), np.uint64), files)
            for again_M, first_M in repeats_of(verdicts.staying_by_place(place_N)):
                append(stream, again_M << HALF | first_M)
        pairs_E = mapped(stream, np.uint64)
    pairs_E.sort()
    order_N, keeper_N, before = verdicts.order_N, verdicts.keeper_N, -1
    # ascending pairs: all that has precedence over a document is decided before it
    for span in spans(pairs_E.size):
        for pair in pairs_E[span].tolist():
            document, first = pair >> int(HALF), pair & int(LOW)
            if pair != before and keeper_N[document] == document:
                stays = keeper_N[first]
                if signatures.similarity(order_N[document], order_N[stays]) >= config.near_similarity:
                    verdicts.mark(document, stays, NEAR_DUPLICATE)
            before = pair


class _Signatures:
    """The signatures of all units, mapped from their files."""

    def __init__(self, units: Sequence[SignedDocuments], starts: NDArray[np.int64]) -> None:
        self._rows = lru_cache(maxsize=MAPPED_UNITS)(lambda unit: units[unit].signatures())
        self._starts = starts

    def similarity(self, a: np.uint64, b: np.uint64) -> float:
        """Return the share of equal values, an unbiased estimate of the Jaccard similarity."""
        return float(np.mean(self._row(int(a)) == self._row(int(b))))

    def _row(self, document: int) -> NDArray[np.uint32]:
        unit = int(np.searchsorted(self._starts, document, side="right")) - 1
        row_P: NDArray[np.uint32] = self._rows(unit)[document - int(self._starts[unit])]
        return row_P
