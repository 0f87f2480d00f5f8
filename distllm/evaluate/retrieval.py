"""Finding passages: exact and approximate search of vectors, BM25, and how good a ranking is.

Shapes: Q queries, P passages, C channels, K places of a ranking.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distllm.data.extras import require

_WORD = re.compile(r"\w+")
_HNSW_LINKS, _HNSW_EFFORT = 32, 64


def search_exact(query_QC: NDArray[np.float32], passage_PC: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the K passages with the largest inner product for each query, best first, found_QK.

    Of equal ones the first comes first.
    """
    scores_QP = query_QC @ passage_PC.T
    found_QK: NDArray[np.int64] = np.argsort(-scores_QP, axis=1, kind="stable")[:, :k]
    return found_QK


class VectorIndex:
    """A faiss index of passages: exact, or a graph that is searched in part (HNSW, Malkov 2016).

    Raises:
        MissingDependency: faiss is not installed.
    """

    def __init__(self, passage_PC: NDArray[np.float32], *, exact: bool) -> None:
        faiss = require("faiss", "searching vectors", extra="search")
        width = passage_PC.shape[1]
        if exact:
            self._index: Any = faiss.IndexFlatIP(width)
        else:
            self._index = faiss.IndexHNSWFlat(width, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
            self._index.hnsw.efSearch = _HNSW_EFFORT
        self._index.add(np.ascontiguousarray(passage_PC, dtype=np.float32))

    def search(self, query_QC: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Return the K passages nearest to each query, best first, found_QK; -1 where there are fewer."""
        found_QK: NDArray[np.int64] = self._index.search(np.ascontiguousarray(query_QC, dtype=np.float32), k)[
            1
        ].astype(np.int64)
        return found_QK


class BM25:
    """Okapi BM25 over lower-cased words (Robertson & Zaragoza 2009), the baseline without a model.

    Args:
        passages: the texts.
        k1: how soon repetitions of a word stop to count.
        b: how much long passages pay for their length.
    """

    def __init__(self, passages: Sequence[str], k1: float = 1.2, b: float = 0.75) -> None:
        counts = [Counter(_words(passage)) for passage in passages]
        length_P = np.array([count.total() for count in counts], dtype=np.float64)
        norm_P = k1 * (1 - b + b * length_P / max(1.0, float(length_P.mean())))
        postings: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for passage, count in enumerate(counts):
            for word, times in count.items():
                postings[word].append((passage, times))
        self._total = len(counts)
        self._scores: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        for word, entries in postings.items():
            place, times = np.array(entries, dtype=np.int64).T
            rarity = math.log(1 + (self._total - place.size + 0.5) / (place.size + 0.5))
            self._scores[word] = place, rarity * times * (k1 + 1) / (times + norm_P[place])

    def search(self, queries: Sequence[str], k: int) -> NDArray[np.int64]:
        """Return the K best passages of each query, best first, found_QK."""
        rows = []
        for query in queries:
            score_P = np.zeros(self._total)
            for word in _words(query):
                if word in self._scores:
                    place, score = self._scores[word]
                    score_P[place] += score
            rows.append(np.argsort(-score_P, kind="stable")[:k])
        return np.array(rows, dtype=np.int64)


def score_rankings(found_QK: NDArray[np.int64], right: Sequence[set[int]], k: int = 10) -> dict[str, float]:
    """Return nDCG, MRR and recall at ``k``, of rankings of passages that are right or not.

    Args:
        found_QK: passages of each query, best first, at least ``k`` of them.
        right: the right passages of each query, at least one.
        k: how many places count.

    Raises:
        ValueError: a query has no right passage.
    """
    if not right or not all(right):
        raise ValueError("every query needs a right passage")
    gains_K = 1 / np.log2(np.arange(2, k + 2))
    sums = np.zeros(3)
    for found_K, wanted in zip(found_QK[:, :k].tolist(), right, strict=True):
        hits_K = np.array([passage in wanted for passage in found_K])
        best = gains_K[: min(k, len(wanted))].sum()
        first = np.flatnonzero(hits_K)
        sums += [
            (gains_K[: hits_K.size] * hits_K).sum() / best,
            1 / (1 + first[0]) if first.size else 0.0,
            hits_K.sum() / len(wanted),
        ]
    ndcg, mrr, recall = (sums / len(right)).tolist()
    return {f"ndcg@{k}": ndcg, f"mrr@{k}": mrr, f"recall@{k}": recall}


def agreement(found_QK: NDArray[np.int64], exact_QK: NDArray[np.int64]) -> float:
    """Return the share of the exact ranking's passages that an approximate one has found."""
    pairs = zip(found_QK.tolist(), exact_QK.tolist(), strict=True)
    return sum(len(set(ours) & set(theirs)) for ours, theirs in pairs) / exact_QK.size


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
