"""Published quality rules, each a share or count compared with its bound.

A rule returns why a text is refused, or None. Bounds are inclusive: a text exactly at the bound stays.
"""

from __future__ import annotations

from collections.abc import Iterator

from distllm.config.schema_clean import FinewebConfig, GopherConfig
from distllm.data.clean.measures import Measures
from distllm.data.clean.punctuation import TERMINAL_PUNCTUATION
from distllm.data.clean.words import QUALITY_STOP_WORDS

_BULLETS = ("•", "-")
_ELLIPSES = ("...", "…")
_NO_GOPHER = GopherConfig()

Verdict = tuple[str, str]
"""The name of the rule that refuses, and why."""


def judge_gopher(text: Measures, config: GopherConfig) -> Verdict | None:
    """Apply the quality rules of Gopher but that of stop words."""
    return next(_gopher(text, config), None)


def judge_stop_words(text: Measures, config: GopherConfig, language: str) -> Verdict | None:
    """Apply Gopher's rule of stop words, which refuses most texts in other languages."""
    if config.min_stop_words is None:
        return None
    known = QUALITY_STOP_WORDS.get(language, QUALITY_STOP_WORDS["en"])
    found = text.count_any(known, config.min_stop_words)
    return next(_at_least("gopher_stop_words", found, config.min_stop_words, "different stop words"), None)


def judge_fineweb(text: Measures, config: FinewebConfig) -> Verdict | None:
    """Apply the rules that FineWeb adds."""
    return next(_fineweb(text, config), None)


def _gopher(text: Measures, config: GopherConfig) -> Iterator[Verdict]:
    if config == _NO_GOPHER:
        return
    count, characters = text.plain_words
    total = max(1, text.words_count)
    yield from _at_least("gopher_few_words", count, config.min_words, "words")
    yield from _at_most("gopher_many_words", count, config.max_words, "words")
    mean = characters / max(1, count)
    yield from _at_least("gopher_short_words", mean, config.min_mean_word_length, "characters a word")
    yield from _at_most("gopher_long_words", mean, config.max_mean_word_length, "characters a word")
    hashes = text.text.count("#") / total
    ellipses = sum(map(text.text.count, _ELLIPSES)) / total
    yield from _at_most("gopher_hashes", hashes, config.max_symbol_ratio, "hash signs a word")
    yield from _at_most("gopher_ellipses", ellipses, config.max_symbol_ratio, "ellipses a word")
    lines = max(1, len(text.split_lines))
    bullets = sum([line.lstrip().startswith(_BULLETS) for line in text.split_lines]) / lines
    cut = ellipses and sum([line.rstrip().endswith(_ELLIPSES) for line in text.split_lines]) / lines
    yield from _at_most("gopher_bullets", bullets, config.max_bullet_lines, "of lines begin with a bullet")
    yield from _at_most("gopher_cut_lines", cut, config.max_ellipsis_lines, "of lines end with an ellipsis")
    letters = text.words_with_letters / total
    yield from _at_least("gopher_letters", letters, config.min_alpha_words, "of words have a letter")


def _fineweb(text: Measures, config: FinewebConfig) -> Iterator[Verdict]:
    if not text.full_lines:
        return
    lines = len(text.full_lines)
    punctuated = sum([line[-1] in TERMINAL_PUNCTUATION for line in text.full_lines]) / lines
    yield from _at_least(
        "fineweb_punctuation", punctuated, config.min_punctuated_lines, "of lines end in punctuation"
    )
    short = sum([len(line) <= config.short_line_chars for line in text.full_lines]) / lines
    yield from _at_most("fineweb_short_lines", short, config.max_short_lines, "of lines are short")
    if config.max_duplicate_line_chars is not None:
        repeated = text.duplicate_full_lines[2] / max(1, len(text.text.replace("\n", "")))
        yield from _at_most(
            "fineweb_repeated_lines", repeated, config.max_duplicate_line_chars, "of characters repeat a line"
        )
    if config.max_newlines_a_word is not None:
        breaks = text.text.count("\n")
        if breaks / max(1, len(text.chunks)) > config.max_newlines_a_word:  # words are not fewer
            share = breaks / max(1, text.words_count)
            yield from _at_most("fineweb_list", share, config.max_newlines_a_word, "line breaks a word")


def _at_least(rule: str, value: float, bound: float | None, what: str) -> Iterator[Verdict]:
    if bound is not None and value < bound:
        yield rule, f"{value:.4g} {what}, at least {bound:.4g}"


def _at_most(rule: str, value: float, bound: float | None, what: str) -> Iterator[Verdict]:
    if bound is not None and value > bound:
        yield rule, f"{value:.4g} {what}, at most {bound:.4g}"
