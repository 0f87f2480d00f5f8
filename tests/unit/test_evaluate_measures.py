"""BLEU, chrF, ROUGE, SQuAD's exact match and F1, and rankings: against the libraries and by hand."""

import math

import numpy as np
import pytest

from distllm.evaluate.answers import exact_match, normalized, score_answers, token_f1, version_of
from distllm.evaluate.retrieval import BM25, VectorIndex, agreement, score_rankings, search_exact
from distllm.evaluate.text import score_summaries, score_translations

REFERENCES = ["the cat sat on the mat", "a dog ran over the hill today", "it rains"]
OUTPUT = ["the cat sat on a mat", "a dog ran on the hill today", "it rains"]


def test_a_perfect_translation_scores_a_hundred():
    scores = score_translations(REFERENCES, REFERENCES)
    assert scores.bleu == pytest.approx(100.0)
    assert scores.chrf == pytest.approx(100.0)


def test_translations_are_scored_as_sacrebleu_does_with_its_signature():
    import sacrebleu

    scores = score_translations(OUTPUT, REFERENCES)
    assert scores.bleu == pytest.approx(sacrebleu.corpus_bleu(OUTPUT, [REFERENCES]).score)
    assert scores.chrf == pytest.approx(sacrebleu.corpus_chrf(OUTPUT, [REFERENCES]).score)
    assert 10 < scores.bleu < scores.chrf < 100
    assert "tok:13a" in scores.bleu_signature
    assert f"version:{sacrebleu.__version__}" in scores.bleu_signature
    assert "nc:6" in scores.chrf_signature


def test_summaries_are_scored_by_shared_words_pairs_and_sequences():
    scores = score_summaries(["the cat sat"], ["the cat sat down"])
    assert scores["rouge1"] == pytest.approx(100 * 2 * 3 / 7)
    assert scores["rouge2"] == pytest.approx(100 * 2 * 2 / 5)
    assert scores["rougeL"] == pytest.approx(100 * 2 * 3 / 7)
    swapped = score_summaries(["sat cat the"], ["the cat sat"])
    assert swapped["rouge1"] == pytest.approx(100.0)
    assert swapped["rouge2"] == 0.0
    assert swapped["rougeL"] == pytest.approx(100 / 3)


def test_words_of_one_stem_are_one_word():
    assert score_summaries(["running dogs"], ["run dog"])["rouge1"] == pytest.approx(100.0)


@pytest.mark.parametrize("score", [score_translations, score_summaries])
def test_every_reference_needs_a_hypothesis(score):
    with pytest.raises(ValueError, match="1 hypotheses for 2 references"):
        score(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="0 hypotheses"):
        score([], [])


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        ("The  Cat!", "cat"),
        ("a.b", "ab"),
        ("an answer, the answer", "answer answer"),
        ("theory", "theory"),
        ("U.S.A.", "usa"),
        ("the", ""),
        ("  \t\n ", ""),
        ("naïve café", "naïve café"),
        ("rock 'n' roll", "rock n roll"),
        ("a-b", "ab"),
    ],
)
def test_what_of_an_answer_counts(answer, counts):
    assert normalized(answer) == counts


@pytest.mark.parametrize(
    ("given", "right", "exact", "f1"),
    [
        ("the Eiffel Tower", "Eiffel tower.", 1.0, 1.0),
        ("Eiffel", "Eiffel tower", 0.0, 2 / 3),
        ("tower tower", "tower", 0.0, 2 / 3),
        ("Paris", "London", 0.0, 0.0),
        ("", "", 1.0, 1.0),
        ("the", "", 1.0, 1.0),
        ("", "cat", 0.0, 0.0),
        ("cat", "", 0.0, 0.0),
        ("a cat and the cat", "cat cat", 0.0, 0.8),
    ],
)
def test_exact_match_and_f1_on_the_edge_cases(given, right, exact, f1):
    assert exact_match(given, right) == exact
    assert token_f1(given, right) == pytest.approx(f1)
    assert token_f1(right, given) == pytest.approx(f1)


# What the official scripts of SQuAD print, in percent: (given, right answers, exact and F1 of 1.1, of 2.0).
OFFICIAL = [
    ("Denver Broncos", ["Denver Broncos", "The Denver Broncos!"], (100.0, 100.0), (100.0, 100.0)),
    ("the broncos", ["Denver Broncos", "Broncos"], (100.0, 100.0), (100.0, 100.0)),
    ("Denver", ["Denver Broncos", "Broncos"], (0.0, 200 / 3), (0.0, 200 / 3)),
    ("gold anniversary", ['a "golden anniversary"', "gold-themed"], (0.0, 50.0), (0.0, 50.0)),
    ("golden, anniversary", ['"golden anniversary"'], (100.0, 100.0), (100.0, 100.0)),
    ("theatre", ["the atre"], (0.0, 0.0), (0.0, 0.0)),
    ("an apple a day", ["apple day"], (100.0, 100.0), (100.0, 100.0)),
    ("U.S. 1,000", ["us 1000"], (100.0, 100.0), (100.0, 100.0)),
    ("rock-n-roll", ["rocknroll"], (100.0, 100.0), (100.0, 100.0)),
    ("rock n roll", ["rock-n-roll"], (0.0, 0.0), (0.0, 0.0)),
    ("“Gold”", ["gold"], (0.0, 0.0), (0.0, 0.0)),  # only ASCII punctuation is taken out
    ("Beyoncé\u00a0Knowles", ["beyoncé knowles"], (100.0, 100.0), (100.0, 100.0)),
    ("Beyonce", ["Beyoncé"], (0.0, 0.0), (0.0, 0.0)),
    ("Straße", ["STRASSE"], (0.0, 0.0), (0.0, 0.0)),  # lower case, not folded
    ("İ", ["i"], (0.0, 0.0), (0.0, 0.0)),
    ("à la carte", ["la carte"], (0.0, 80.0), (0.0, 80.0)),  # à is no article
    ("a\tb\n c", ["b c"], (100.0, 100.0), (100.0, 100.0)),
    ("yes yes no", ["yes no no"], (0.0, 200 / 3), (0.0, 200 / 3)),
    ("", ["cat"], (0.0, 0.0), (0.0, 0.0)),
    ("the", ["cat"], (0.0, 0.0), (0.0, 0.0)),
    ("the", ["a"], (100.0, 0.0), (100.0, 100.0)),  # two answers that are nothing
    ("", ["...", "cat"], (100.0, 0.0), (0.0, 0.0)),  # one that is nothing does not count in 2.0
    ("", ["..."], (100.0, 0.0), (100.0, 100.0)),
    ("cat", ["..."], (0.0, 0.0), (0.0, 0.0)),
    ("", [], None, (100.0, 100.0)),
    ("a.", [], None, (100.0, 100.0)),
    ("no answer", [], None, (0.0, 0.0)),
]


@pytest.mark.parametrize(("given", "right", "first", "second"), OFFICIAL)
def test_scores_are_those_of_the_official_scripts(given, right, first, second):
    for version, expected in (("1.1", first), ("2.0", second)):
        if expected is not None:
            scores = score_answers({"q": given}, {"q": right}, version)
            assert (scores["exact_match"], scores["f1"]) == pytest.approx(expected), version


def test_a_question_without_a_given_answer_is_wrong_in_one_version_and_not_counted_in_the_other():
    given, right = {"1": "the broncos", "2": "cat"}, {"1": ["Broncos"], "2": ["dog"], "3": ["x"]}
    assert score_answers(given, right, "1.1") == {
        "exact_match": pytest.approx(100 / 3),
        "f1": pytest.approx(100 / 3),
    }
    assert score_answers(given, right, "2.0") == {"exact_match": 50.0, "f1": 50.0}
    for version in ("1.1", "2.0"):
        with pytest.raises(ValueError, match="no questions"):
            score_answers({}, {}, version)


def test_questions_with_and_without_answers_are_also_scored_apart():
    right = {"1": ["Denver Broncos", "Broncos"], "2": [], "3": ["x"], "4": []}
    given = {"1": "Denver", "2": "something", "3": "x", "4": "the"}
    assert version_of(right) == "2.0"
    scores = score_answers(given, right)
    assert scores == {
        "exact_match": 50.0,
        "f1": pytest.approx(100 * (2 / 3 + 1 + 1) / 4),
        "answerable_exact_match": 50.0,
        "answerable_f1": pytest.approx(100 * (2 / 3 + 1) / 2),
        "unanswerable_exact_match": 50.0,
        "unanswerable_f1": 50.0,
    }
    answered = {name: answers for name, answers in right.items() if answers}
    assert version_of(answered) == "1.1"
    assert set(score_answers(given, answered)) == {"exact_match", "f1"}


def vectors(rows, width=16, seed=0):
    drawn = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def test_exact_search_is_that_of_faiss():
    queries, passages = vectors(20, seed=1), vectors(300)
    ours = search_exact(queries, passages, 7)
    assert ours.shape == (20, 7)
    assert np.array_equal(ours, VectorIndex(passages, exact=True).search(queries, 7))
    scores = np.take_along_axis(queries @ passages.T, ours, axis=1)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_approximate_search_finds_most_of_it():
    queries, passages = vectors(40, seed=1), vectors(2000)
    exact = search_exact(queries, passages, 10)
    found = VectorIndex(passages, exact=False).search(queries, 10)
    assert 0.8 < agreement(found, exact) <= 1.0
    assert agreement(exact, exact) == 1.0
    assert agreement(np.full_like(exact, -1), exact) == 0.0


def test_rankings_are_scored_by_hand():
    found = np.array([[4, 7, 9], [1, 2, 3], [5, 6, 0]])
    scores = score_rankings(found, [{7}, {9}, {5, 0}], k=3)
    first, second = 1 / math.log2(3), (1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    assert scores["ndcg@3"] == pytest.approx((first + 0 + second) / 3)
    assert scores["mrr@3"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert scores["recall@3"] == pytest.approx((1 + 0 + 1) / 3)
    at_one = score_rankings(found, [{7}, {9}, {5, 0}], k=1)
    assert at_one == {"ndcg@1": pytest.approx(1 / 3), "mrr@1": pytest.approx(1 / 3), "recall@1": 0.5 / 3}
    with pytest.raises(ValueError, match="needs a right passage"):
        score_rankings(found, [{7}, set(), {5}], k=3)


def test_bm25_ranks_rare_shared_words_in_short_passages_first():
    passages = [
        "the cat sat on the mat",
        "the dog sat on the log and the cat was not there at all today",
        "a treatise of logs",
        "the the the the",
    ]
    found = BM25(passages).search(["Cat", "log dog", "treatise", "nothing of this"], 2)
    assert found[0].tolist() == [0, 1]
    assert found[1][0] == 1
    assert found[2][0] == 2
    assert found[3][0] == 2  # "of"


def test_bm25_scores_are_those_of_the_formula():
    passages = ["x y", "x x z z", "w"]
    index = BM25(passages, k1=1.5, b=0.5)
    mean = 7 / 3
    rarity = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    places, scores = index._scores["x"]
    assert places.tolist() == [0, 1]
    for score, times, length in zip(scores, (1, 2), (2, 4), strict=True):
        norm = 1.5 * (1 - 0.5 + 0.5 * length / mean)
        assert score == pytest.approx(rarity * times * 2.5 / (times + norm))
