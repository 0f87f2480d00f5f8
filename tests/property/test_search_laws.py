"""Laws of search: what cutting, fusing, showing and storing never lose or invent, on generated texts."""

import re

import numpy as np
import serving
from hypothesis import given, settings
from hypothesis import strategies as st

from distllm.evaluate.retrieval import BM25, words_of
from distllm.search.build import batches_of
from distllm.search.corpus import Passage, cut, read_passages
from distllm.search.index import RRF_K, fuse
from distllm.search.snippets import around, snippet

WORDS = serving.tokenizer()
VOCABULARY = ("the", "model", "reads", "Token", "ünd", "x", "naïve", "it's")
texts = st.text(
    st.characters(codec="utf-8", categories=("L", "N", "P", "Z"), include_characters="\n\t "), max_size=300
)
sentences = st.lists(st.sampled_from(VOCABULARY), max_size=60).map(" ".join)
rankings = st.lists(st.lists(st.integers(0, 30), unique=True, max_size=20), max_size=3)


@given(texts, st.integers(8, 40))
def test_cutting_keeps_every_character_but_space(text, longest):
    pieces = cut(text, WORDS, longest)
    assert re.sub(r"\s", "", "".join(pieces)) == re.sub(r"\s", "", text)
    assert all(piece == piece.strip() != "" for piece in pieces)


@given(sentences, st.integers(8, 40))
def test_passages_of_short_words_are_short(text, longest):
    for piece in cut(text, WORDS, longest):
        assert (
            len(WORDS.encode(piece)) <= longest + 1
        )  # a first word without its space may be split otherwise


@given(texts, st.lists(st.sampled_from(VOCABULARY), max_size=4), st.integers(10, 80))
def test_a_snippet_is_a_stretch_of_the_text_and_its_matches_are_words_of_the_query(text, words, width):
    shown, matches = snippet(text, [word.lower() for word in words], width)
    assert shown.strip("…") in " ".join(text.split())
    assert len(shown.strip("…")) <= width
    for begin, end in matches:
        assert shown[begin:end].lower() in {word.lower() for word in words}


@given(
    sentences.filter(bool), st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=1), st.integers(20, 80)
)
def test_a_word_that_the_text_holds_is_shown(text, words, width):
    wanted = [word.lower() for word in words]
    held = set(wanted) & set(words_of(text))
    assert bool(held) == bool(snippet(text, wanted, width)[1])


@given(sentences.filter(lambda text: len(text) > 4), st.integers(1, 90), st.data())
def test_a_place_is_always_inside_what_is_around_it(text, width, data):
    first = data.draw(st.integers(0, len(text) - 1))
    last = data.draw(st.integers(first + 1, len(text)))
    shown, places = around(text, (first, last), width)
    assert [shown[a:b] for a, b in places] == [text[first:last]]


@given(rankings)
def test_fusing_keeps_every_passage_once_with_the_sum_of_its_places(lists):
    fused = fuse(lists)
    assert sorted(passage for passage, _ in fused) == sorted({p for ranking in lists for p in ranking})
    assert [score for _, score in fused] == sorted((score for _, score in fused), reverse=True)
    for passage, score in fused:
        places = [ranking.index(passage) + 1 for ranking in lists if passage in ranking]
        assert abs(score - sum(1 / (RRF_K + place) for place in places)) < 1e-12


@given(st.lists(sentences, min_size=1, max_size=8), sentences)
@settings(deadline=None)
def test_word_scores_come_back_from_their_arrays_and_only_matches_are_found(passages, query):
    words = BM25(passages)
    again = BM25.from_arrays(words.to_arrays())
    np.testing.assert_array_equal(words.search([query], 5), again.search([query], 5))
    found = again.matching(query, 5).tolist()
    assert found == words.matching(query, 5).tolist()
    assert all(set(words_of(passages[place])) & set(words_of(query)) for place in found)
    assert set(again.informative_words(query)) <= set(words_of(query))


@given(st.lists(st.integers(0, 128), max_size=100), st.integers(1, 5))
def test_ranks_share_the_batches_of_one_order(sizes, ranks):
    batches = batches_of(sizes)
    shared = [batch for rank in range(ranks) for batch in batches[rank::ranks]]
    assert sorted(place for batch in shared for place in batch) == list(range(len(sizes)))


@given(st.lists(st.tuples(texts, texts), max_size=5))
def test_passages_are_read_as_they_were_written(pairs):
    import json

    passages = [Passage(name, text) for name, text in pairs]
    lines = [json.dumps({"document": p.document, "text": p.text}, ensure_ascii=False) for p in passages]
    assert read_passages("".join(line + "\n" for line in lines).encode()) == passages
