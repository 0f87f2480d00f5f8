"""Our verdicts beside those of datatrove 0.10.1, on real and on constructed documents.

With the same words the verdicts are equal. datatrove takes its words from spaCy, which splits
contractions and keeps some symbols together; what that changes is counted here and bounded.
"""

import json
from pathlib import Path

import pytest

from distllm.data.clean import load_profile
from distllm.data.clean.c4 import apply_c4
from distllm.data.clean.measures import Measures
from distllm.data.clean.quality import judge_fineweb, judge_gopher
from distllm.data.clean.repetition import judge_repetition

GOLDEN = Path(__file__).with_name("clean_verdicts.jsonl")
WEB = load_profile("web")
JUDGES = {
    "gopher": lambda text: judge_gopher(Measures(text), WEB.gopher, "en"),
    "repetition": lambda text: judge_repetition(Measures(text), WEB.repetition),
    "c4": lambda text: apply_c4(text, WEB.c4)[1],
    "fineweb": lambda text: judge_fineweb(Measures(text), WEB.fineweb),
}
OTHER_WORDS = {"gopher": 10, "repetition": 6, "c4": 0, "fineweb": 1}


@pytest.fixture(scope="module")
def golden():
    return [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]


def test_the_golden_documents_reach_both_verdicts_of_every_group(golden):
    assert len(golden) >= 190
    for name in JUDGES:
        kept = sum(document["datatrove"][name] is True for document in golden)
        assert 20 < kept < len(golden) - 5, name


@pytest.mark.parametrize("name", JUDGES)
def test_verdicts_on_the_same_words_are_equal(golden, name):
    differing = [
        (document["id"], verdict, document["same_words"][name])
        for document in golden
        if ((verdict := JUDGES[name](document["text"])) is None) != (document["same_words"][name] is True)
    ]
    assert not differing


@pytest.mark.parametrize("name", JUDGES)
def test_other_words_change_few_verdicts(golden, name):
    differing = [
        document["id"]
        for document in golden
        if (JUDGES[name](document["text"]) is None) != (document["datatrove"][name] is True)
    ]
    assert len(differing) <= OTHER_WORDS[name], differing
