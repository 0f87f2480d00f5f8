"""Our verdicts beside those of datatrove 0.10.1, rule by rule, on real and on constructed documents.

They are equal, with one thing that differs by intention: a character of a script that is written without
spaces is a word of its own here, and a whole chunk of them is one word there. What that changes is
counted here.
"""

import hashlib
import json
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest

from distllm.config.schema_clean import C4Config, CleanConfig, FinewebConfig, GopherConfig, RepetitionConfig
from distllm.data.clean import Cleaner, load_profile
from distllm.data.clean.c4 import apply_c4
from distllm.data.clean.measures import Measures
from distllm.data.clean.quality import judge_fineweb, judge_gopher, judge_stop_words
from distllm.data.clean.repetition import judge_repetition
from distllm.data.records import Document

GOLDEN = Path(__file__).with_name("clean_verdicts.jsonl")
WEB = load_profile("web")
ENDED_LINES = load_profile("c4").c4
FIRST_NGRAM = {"max_top_ngram": 2, "max_duplicate_ngram": 5}
COUNT_NO_WORDS = {
    *("gopher.max_bullet_lines", "gopher.max_ellipsis_lines", "c4.curly_bracket", "c4.lorem_ipsum"),
    *("repetition.max_duplicate_lines", "repetition.max_duplicate_line_chars"),
    *("repetition.max_duplicate_paragraphs", "repetition.max_duplicate_paragraph_chars"),
    *("fineweb.min_punctuated_lines", "fineweb.max_short_lines", "fineweb.max_duplicate_line_chars"),
}


def gopher(config, text):
    """Return the verdict of all of Gopher's quality rules, on English."""
    return judge_stop_words(text, config, "en") or judge_gopher(text, config)


def rules():
    """Yield each rule of the web profile that drops documents, with a function that says whether it does."""
    for key in (item.name for item in fields(GopherConfig)):
        config = GopherConfig(**{key: getattr(WEB.gopher, key)})
        yield f"gopher.{key}", partial(gopher, config)
    for key in (item.name for item in fields(RepetitionConfig)):
        value = getattr(WEB.repetition, key)
        for n, share in enumerate(value, FIRST_NGRAM[key]) if key in FIRST_NGRAM else [(None, value)]:
            # A share of 9 is never reached: only the last n-gram judges.
            shares = value if n is None else (9.0,) * (n - FIRST_NGRAM[key]) + (share,)
            config = RepetitionConfig(**{key: shares})
            name = f"repetition.{key}" if n is None else f"repetition.{key}.{n}"
            yield name, lambda text, config=config: judge_repetition(text, config)
    lines = {"min_line_words": WEB.c4.min_line_words, "max_word_length": WEB.c4.max_word_length}
    for key in ("curly_bracket", "lorem_ipsum", "min_sentences"):
        c4 = C4Config(**lines, boilerplate=True, **{key: getattr(WEB.c4, key)})
        yield f"c4.{key}", lambda text, config=c4: apply_c4(text.text, config)[1]
    for key in ("min_punctuated_lines", "max_short_lines", "max_duplicate_line_chars", "max_newlines_a_word"):
        config = FinewebConfig(**{key: getattr(WEB.fineweb, key)})
        yield f"fineweb.{key}", lambda text, config=config: judge_fineweb(text, config)


RULES = dict(rules())


@pytest.fixture(scope="module")
def golden():
    found = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
    return [(item, Measures(item["text"] * item.get("times", 1))) for item in found]


def test_the_golden_documents_are_small_many_and_of_six_languages(golden):
    assert GOLDEN.stat().st_size < 300_000
    assert len(golden) >= 190
    assert {item.get("language", "") for item, _ in golden} == {"", "de", "en", "es", "fr", "it", "zh"}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_refuses_what_datatrove_refuses(golden, rule):
    refused = {item["id"] for item, _ in golden if rule in item["refused"]}
    assert 0 < len(refused) < len(golden)
    assert {item["id"] for item, measures in golden if RULES[rule](measures) is not None} == refused


def test_the_chain_keeps_what_datatrove_keeps(golden):
    cleaner = Cleaner(CleanConfig(
        min_chars=0, gopher=WEB.gopher, repetition=WEB.repetition, c4=WEB.c4, fineweb=WEB.fineweb
    ))  # fmt: skip
    kept = [
        item["id"]
        for item, measures in golden
        if isinstance(cleaner(Document.from_text(item["id"], measures.text, "en"))[0], Document)
    ]
    assert kept == [item["id"] for item, _ in golden if item["chain"]]
    assert len(kept) > 20


@pytest.mark.parametrize("key", ["lines", "ended_lines"])
def test_the_lines_that_stay_are_those_that_datatrove_keeps(golden, key):
    config = C4Config(min_line_words=3, max_word_length=1000, boilerplate=True)
    if key == "ended_lines":
        config = C4Config(min_line_words=3, max_word_length=1000, boilerplate=True, terminal_punctuation=True)
    for item, measures in golden:
        text, _ = apply_c4(measures.text, config)
        lines = (" ".join(line.split()) for line in text.split("\n"))
        digest = hashlib.sha256("\n".join(line for line in lines if line).encode()).hexdigest()
        assert digest[:16] == item[key], item["id"]


def test_words_of_scripts_without_spaces_change_only_rules_that_count_words(golden):
    unspaced = [item for item, _ in golden if "as_is" in item]
    different = {rule for item in unspaced for rule in {*item["as_is"]} ^ {*item["refused"]}}
    assert unspaced
    assert different
    assert not different & COUNT_NO_WORDS
