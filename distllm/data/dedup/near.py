"""Nearly equal documents: candidates by bands of MinHash signatures, each checked against its keeper.

In every band the documents of one bucket are compared with the bucket's first by precedence. A
document goes only if its estimated similarity *to the document that stays* reaches the bound: where
the first has itself gone, the comparison is with what it made way for. So a chain of documents, each
like the next, does not end as one cluster whose ends have nothing in common.

Shapes: N documents of all units, D documents that are compared, P permutations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distllm.config.schema_dedup import DedupConfig
from distllm.data.dedup.shingles import mix
from distllm.data.dedup.signing import SignedDocuments

_BASE = np.uint64(0x9E3779B97F4A7C15)


def find_near_duplicates(
    units: Sequence[SignedDocuments],
    open_D: NDArray[np.int64],
    rank_N: NDArray[np.int64],
    starts: NDArray[np.int64],
    config: DedupConfig,
) -> dict[int, int]:
    """Return for each document that goes the one that stays.

    Args:
        units: the signatures.
        open_D: documents to compare, in ascending order; others have gone before.
        rank_N: precedence of every document.
        starts: number of each unit's first document.
        config: bands, rows and the bound.
    """
    signatures = _Signatures(units, starts)
    edges = [
        _bucket_firsts(signatures.band(number, config.rows, open_D), open_D, rank_N)
        for number in range(config.bands)
    ]
    pairs = np.unique(np.concatenate(edges), axis=0)
    pairs = pairs[np.lexsort((rank_N[pairs[:, 1]], rank_N[pairs[:, 0]]))]
    keeper: dict[int, int] = {}
    for document, first in pairs.tolist():
        if document not in keeper:
            stays = keeper.get(first, first)
            if signatures.similarity(document, stays) >= config.near_similarity:
                keeper[document] = stays
    return keeper


def _bucket_firsts(
    band_D: NDArray[np.uint64], open_D: NDArray[np.int64], rank_N: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return [E, 2]: each document that shares a bucket, and the first of that bucket."""
    order = np.lexsort((rank_N[open_D], band_D))
    ordered = band_D[order]
    opens = np.ones(order.size, dtype=bool)
    opens[1:] = ordered[1:] != ordered[:-1]
    first = order[np.maximum.accumulate(np.where(opens, np.arange(order.size), 0))]
    return np.stack([open_D[order[~opens]], open_D[first[~opens]]], axis=1)


class _Signatures:
    """The signatures of all units, mapped from their files."""

    def __init__(self, units: Sequence[SignedDocuments], starts: NDArray[np.int64]) -> None:
        self._units = [unit.signatures() for unit in units]
        self._starts = starts

    def band(self, number: int, rows: int, open_D: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the hash of one band of each document of ``open_D``."""
        hashes = np.empty(int(self._starts[-1]), dtype=np.uint64)
        for unit, start in zip(self._units, self._starts, strict=False):
            combined = np.full(len(unit), number + 1, dtype=np.uint64)
            for column in range(number * rows, (number + 1) * rows):
                combined = combined * _BASE + unit[:, column]
            hashes[start : start + len(unit)] = mix(combined)
        return hashes[open_D]

    def similarity(self, a: int, b: int) -> float:
        """Return the share of equal values, an unbiased estimate of the Jaccard similarity."""
        return float(np.mean(self._row(a) == self._row(b)))

    def _row(self, document: int) -> NDArray[np.uint32]:
        unit = int(np.searchsorted(self._starts, document, side="right")) - 1
        row_P: NDArray[np.uint32] = self._units[unit][document - int(self._starts[unit])]
        return row_P
