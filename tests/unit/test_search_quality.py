"""Words find the right modules of the standard library for most judged queries, and passages help them."""

from types import SimpleNamespace

import pytest
from judged_search import documents, judged, score

from distllm.evaluate.retrieval import BM25
from distllm.search.corpus import cut, passages_of

pytestmark = pytest.mark.slow
WORDS = SimpleNamespace(encode_batch=lambda texts: [text.split() for text in texts])


@pytest.fixture(scope="module")
def texts():
    found = documents()
    assert len(found) > 200
    return found


def ndcg(texts, pieces):
    passages = [(name, piece) for name, text in texts for piece in pieces(text, WORDS, 90)]
    index = BM25([piece for _, piece in passages])
    asked = judged([name for name, _ in texts])
    assert len(asked) > 40
    ranked = [
        list(dict.fromkeys(passages[place][0] for place in index.matching(query, 100))) for query, _ in asked
    ]
    return score(ranked, [right for _, right in asked])["ndcg@10"]


def test_passages_with_their_titles_are_found_better_than_pieces_without(texts):
    with_titles, without = ndcg(texts, passages_of), ndcg(texts, cut)
    print(f"BM25, nDCG@10: {with_titles:.3f} with titles, {without:.3f} without")
    assert with_titles > without
    assert with_titles > 0.4


def test_queries_are_judged_once_each(texts):
    asked = judged([name for name, _ in texts])
    assert len({query for query, _ in asked}) == len(asked)
