"""Finding passages by vectors (exactly or approximately) and by words (BM25), and measures of rankings.

Shapes: Q queries, P passages, C channels, K places of a ranking.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distllm.data.shingles import UNSPACED
from distllm.extras import require

WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")
"""A run of letters and digits; one character of a script that is written without spaces."""
_HNSW_LINKS, _HNSW_EFFORT = 32, 64


def search_exact(query_QC: NDArray[np.float32], passage_PC: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the K passages with the largest inner product for each query, best first, found_QK.

    Of equal ones the first comes first.
    """
    scores_QP = query_QC @ passage_PC.T
    return np.stack([_best(score_P, k) for score_P in scores_QP])


class VectorIndex:
    """A faiss index of passages: exact, or a graph that is searched in part (HNSW, Malkov 2016).

    The graph is built by one thread: the same vectors give the same bytes.

    Raises:
        MissingDependency: faiss is not installed.
    """

    def __init__(self, passage_PC: NDArray[np.float32], *, exact: bool) -> None:
        faiss = require_faiss()
        width = passage_PC.shape[1]
        if exact:
            self._index: Any = faiss.IndexFlatIP(width)
        else:
            self._index = faiss.IndexHNSWFlat(width, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
            self._index.hnsw.efSearch = _HNSW_EFFORT
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        self._index.add(np.ascontiguousarray(passage_PC, dtype=np.float32))
        faiss.omp_set_num_threads(threads)

    @classmethod
    def from_bytes(cls, content: bytes) -> VectorIndex:
        """Return the index that `to_bytes` has written. The content is trusted: compare its digest before.

        Raises:
            MissingDependency: faiss is not installed.
        """
        read = cls.__new__(cls)
        read._index = require_faiss().deserialize_index(np.frombuffer(content, dtype=np.uint8))
        return read

    def to_bytes(self) -> bytes:
        """Return the index in faiss's own format."""
        content: bytes = require_faiss().serialize_index(self._index).tobytes()
        return content

    def search(self, query_QC: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Return the K passages nearest to each query, best first, found_QK; -1 where there are fewer."""
        found_QK: NDArray[np.int64] = self._index.search(np.ascontiguousarray(query_QC, dtype=np.float32), k)[
            1
        ].astype(np.int64)
        return found_QK


def require_faiss() -> Any:
    """Return the module faiss.

    Raises:
        MissingDependency: it is not installed.
    """
    return require("faiss", "searching vectors", extra="search")


class BM25:
    """Okapi BM25 over lower-cased words (Robertson & Zaragoza 2009), the baseline without a model.

    Args:
        passages: the texts.
        k1: how fast repetitions of a word stop counting.
        b: how much scores are reduced for long passages, from 0 to 1.
    """

    def __init__(self, passages: Sequence[str], k1: float = 1.2, b: float = 0.75) -> None:
        counts = [Counter(words_of(passage)) for passage in passages]
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

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> BM25:
        """Return the index whose `to_arrays` made ``arrays``."""
        read = cls.__new__(cls)
        (read._total,) = arrays["total"].tolist()
        words = arrays["words"].tobytes().decode().splitlines()
        cuts = arrays["ends"][:-1].tolist()
        entries = (np.split(arrays[name], cuts) for name in ("places", "scores"))
        read._scores = dict(zip(words, zip(*entries, strict=True), strict=True)) if words else {}
        return read

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the words (UTF-8, one a line), where the entries of each end, and the entries."""
        known = sorted(self._scores.items())
        places = [place for _, (place, _) in known]
        scores = [score for _, (_, score) in known]
        return {
            "total": np.array([self._total], dtype=np.int64),
            "words": np.frombuffer("\n".join(word for word, _ in known).encode(), dtype=np.uint8),
            "ends": np.cumsum([place.size for place in places], dtype=np.int64),
            "places": np.concatenate([np.empty(0, dtype=np.int64), *places]),
            "scores": np.concatenate([np.empty(0), *scores]),
        }

    def search(self, queries: Sequence[str], k: int) -> NDArray[np.int64]:
        """Return the K best passages of each query, best first, found_QK."""
        return np.array([_best(self._scored(query), k) for query in queries], dtype=np.int64)

    def matching(self, query: str, k: int) -> NDArray[np.int64]:
        """Return at most K passages that hold an informative word of the query, best first, found_K."""
        score_P = self._scored(" ".join(self.informative_words(query)))
        holding = np.flatnonzero(score_P > 0)
        best_K: NDArray[np.int64] = holding[_best(score_P[holding], k)]
        return best_K

    def informative_words(self, query: str) -> list[str]:
        """Return the words of a query in at most half of the passages; if there are none, all known ones."""
        known = [word for word in dict.fromkeys(words_of(query)) if word in self._scores]
        rare = [word for word in known if 2 * self._scores[word][0].size <= self._total]
        return rare or known

    def highlighted_words(self, query: str) -> list[str]:
        """Return the informative words whose rarity, in nats, is at least a third of the rarest one's.

        Others, such as articles in a small corpus, would highlight half of a text.
        """
        rarity = {
            word: math.log(self._total / self._scores[word][0].size) for word in self.informative_words(query)
        }
        most = max(rarity.values(), default=0.0)
        return [word for word, nats in rarity.items() if nats >= most / 3]

    def _scored(self, query: str) -> NDArray[np.float64]:
        score_P = np.zeros(self._total)
        for word in words_of(query):
            if word in self._scores:
                place, score = self._scores[word]
                score_P[place] += score
        return score_P


def _best(score_P: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Return the places of the K highest scores, best first; of equal ones the first comes first."""
    place_K = np.arange(score_P.size)
    if k < score_P.size:
        place_K = np.flatnonzero(score_P >= np.partition(score_P, -k)[-k])
    best_K: NDArray[np.int64] = place_K[np.argsort(-score_P[place_K], kind="stable")[:k]]
    return best_K


def score_rankings(found_QK: NDArray[np.int64], right: Sequence[set[int]], k: int = 10) -> dict[str, float]:
    """Return nDCG, MRR and recall at ``k`` with binary relevance.

    Args:
        found_QK: passages of each query, best first, at least ``k`` of them.
        right: the relevant passages of each query, at least one.
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
    """Return the share of the exact ranking's passages that are in the approximate one."""
    pairs = zip(found_QK.tolist(), exact_QK.tolist(), strict=True)
    return sum(len(set(ours) & set(theirs)) for ours, theirs in pairs) / exact_QK.size


def words_of(text: str) -> list[str]:
    """Return the lower-cased words of a text."""
    return WORD.findall(text.lower())
