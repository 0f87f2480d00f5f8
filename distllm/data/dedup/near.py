"""Nearly equal documents: candidates by bands of MinHash signatures, each checked against its keeper.

In every band the documents of one bucket are compared with the bucket's first by precedence. A
document goes only if its estimated similarity *to the document that stays* reaches the bound: where
the first has itself gone, the comparison is with what it made way for. So a chain of documents, each
like the next, does not end as one cluster whose ends have nothing in common.

Held in memory: 40 bytes a document, and 8 bytes a pair of a document and the first of a bucket of it,
which is nearly always the same one in all bands.

Shapes: N documents of all units, D documents that are compared, by precedence, E pairs, P permutations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distllm.config.schema_dedup import DedupConfig
from distllm.data.dedup.signing import SignedDocuments

_HALF, _LOW = 32, (1 << 32) - 1
_PAIRS_AT_ONCE = 1 << 16


def find_near_duplicates(
    units: Sequence[SignedDocuments],
    open_D: NDArray[np.int64],
    order_N: NDArray[np.int64],
    starts: NDArray[np.int64],
    config: DedupConfig,
) -> NDArray[np.int64]:
    """Return for each document the one that stays in its place; itself if nothing is like it.

    Args:
        units: the signatures.
        open_D: documents to compare; others have gone before.
        order_N: all documents by precedence. Fewer than 2**32 are compared.
        starts: number of each unit's first document.
        config: bands, rows and the bound.
    """
    compared_N = np.zeros(order_N.size, dtype=bool)
    compared_N[open_D] = True
    document_D = order_N[compared_N[order_N]]
    assert document_D.size <= _LOW
    signatures = _Signatures(units, starts)
    pairs_E = np.empty(0, dtype=np.uint64)
    for number in range(config.bands):
        pairs_E = np.union1d(pairs_E, _bucket_firsts(signatures.band(number)[document_D]))
    keeper_D = np.arange(document_D.size)
    # ascending pairs: all that has precedence over a document is decided before it
    for low in range(0, pairs_E.size, _PAIRS_AT_ONCE):
        for pair in pairs_E[low : low + _PAIRS_AT_ONCE].tolist():
            document, first = pair >> _HALF, pair & _LOW
            if keeper_D[document] == document:
                stays = keeper_D[first]
                if signatures.similarity(document_D[document], document_D[stays]) >= config.near_similarity:
                    keeper_D[document] = stays
    keeper_N = np.arange(order_N.size)
    keeper_N[document_D] = document_D[keeper_D]
    return keeper_N


def _bucket_firsts(band_D: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return each document that shares a bucket, in the high half, and the first of that bucket."""
    order_D = np.argsort(band_D, kind="stable")
    ordered_D = band_D[order_D]
    opens_D = np.ones(order_D.size, dtype=bool)
    opens_D[1:] = ordered_D[1:] != ordered_D[:-1]
    first_D = order_D[np.maximum.accumulate(np.where(opens_D, np.arange(order_D.size), 0))]
    document_E, first_E = order_D[~opens_D].astype(np.uint64), first_D[~opens_D].astype(np.uint64)
    return document_E << np.uint64(_HALF) | first_E


class _Signatures:
    """The signatures of all units, mapped from their files."""

    def __init__(self, units: Sequence[SignedDocuments], starts: NDArray[np.int64]) -> None:
        self._units = units
        self._rows = [unit.signatures() for unit in units]
        self._starts = starts

    def band(self, number: int) -> NDArray[np.uint64]:
        """Return the hash of one band of every document."""
        return np.concatenate([unit.bands()[number] for unit in self._units])

    def similarity(self, a: np.int64, b: np.int64) -> float:
        """Return the share of equal values, an unbiased estimate of the Jaccard similarity."""
        return float(np.mean(self._row(a) == self._row(b)))

    def _row(self, document: np.int64) -> NDArray[np.uint32]:
        unit = int(np.searchsorted(self._starts, document, side="right")) - 1
        row_P: NDArray[np.uint32] = self._rows[unit][document - self._starts[unit]]
        return row_P
