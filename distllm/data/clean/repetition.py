"""Gopher's repetition rules: lines, paragraphs and word n-grams that come again.

Decisions equal those of a direct count over tuples of words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, compress, pairwise
from typing import NamedTuple

from distllm.config.schema_clean import RepetitionConfig
from distllm.data.clean.measures import Measures
from distllm.data.clean.quality import Verdict

_FIRST_TOP, _FIRST_DUPLICATE = 2, 5
_NO_REPETITION = RepetitionConfig()


def judge_repetition(text: Measures, config: RepetitionConfig) -> Verdict | None:
    """Return the first rule that refuses the text, and why."""
    if config == _NO_REPETITION:
        return None
    return next(_pieces(text, config), None) or next(_ngrams(text, config), None)


def _pieces(text: Measures, config: RepetitionConfig) -> Iterator[Verdict]:
    size = max(1, len(text.text))
    for name, repeats, share, char_share in (
        ("paragraphs", "duplicate_paragraphs", config.max_duplicate_paragraphs,
         config.max_duplicate_paragraph_chars),
        ("lines", "duplicate_lines", config.max_duplicate_lines, config.max_duplicate_line_chars),
    ):  # fmt: skip
        if share is None and char_share is None:
            continue
        count, again, characters = getattr(text, repeats)
        if share is not None and again / count > share:
            yield f"repeated_{name}", f"{again / count:.4g} of {name} repeat, at most {share:.4g}"
        if char_share is not None and characters / size > char_share:
            yield (
                f"repeated_{name}",
                f"{characters / size:.4g} of characters are in {name} that repeat, at most {char_share:.4g}",
            )


def _ngrams(text: Measures, config: RepetitionConfig) -> Iterator[Verdict]:
    size = max(1, len(text.text))
    if not config.max_top_ngram and not config.max_duplicate_ngram:
        return
    repeated = _Repeated(text.words)
    for n, share in enumerate(config.max_top_ngram, _FIRST_TOP):
        if len(text.words) >= n and (found := _top_chars(text.words, repeated.of(n)) / size) > share:
            yield f"top_{n}gram", f"{found:.4g} of characters are in one {n}-gram, at most {share:.4g}"
    yield from _duplicates(repeated, text.words, size, config.max_duplicate_ngram)


class _Ngrams(NamedTuple):
    """The n-grams that stand in a text more than once: their places in order, and how often each stands."""

    n: int
    places: list[int]
    grams: list[tuple[str, ...]]
    counts: Mapping[tuple[str, ...], int]


class _Repeated:
    """Repeated n-grams, sought where both (n-1)-grams in an n-gram repeat: mostly at few places."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._found = [_repeating(_FIRST_TOP, range(len(words)), list(pairwise(words)))]

    def of(self, n: int) -> _Ngrams:
        """Return those of ``n`` words, two or more."""
        while len(self._found) <= n - _FIRST_TOP:
            shorter, size = self._found[-1], len(self._found) + _FIRST_TOP
            places = [place for place, after in pairwise(shorter.places) if after == place + 1]
            grams = [tuple(self._words[place : place + size]) for place in places]
            self._found.append(_repeating(size, places, grams))
        return self._found[n - _FIRST_TOP]


def _repeating(n: int, places: Iterable[int], grams: list[tuple[str, ...]]) -> _Ngrams:
    counts = Counter(grams) if grams else {}
    if len(counts) == len(grams):
        return _Ngrams(n, [], [], {})
    again = [count > 1 for count in map(counts.__getitem__, grams)]
    return _Ngrams(n, list(compress(places, again)), list(compress(grams, again)), counts)


def _top_chars(words: list[str], repeated: _Ngrams) -> int:
    """Return the characters, spaces between words included, of all places of the commonest n-gram."""
    most, top = max(repeated.counts.values(), default=1), tuple(words[: repeated.n])
    if most > 1:  # of several the first in the text
        top = next(gram for gram, count in repeated.counts.items() if count == most)
    return (sum(map(len, top)) + repeated.n - 1) * most


def _duplicates(
    repeated: _Repeated, words: list[str], size: int, shares: tuple[float, ...]
) -> Iterator[Verdict]:
    """Compare the characters in n-grams that stood before, read left to right without overlap.

    What repeated n-grams cover, repeated shorter ones cover too. So the cover, cheap to count, bounds the
    characters of this n and of all greater ones, and mostly the smallest n settles them all.
    """
    if not shares or not repeated.of(_FIRST_DUPLICATE).places:
        return
    ends = [0, *accumulate(map(len, words))]
    for n, share in enumerate(shares, _FIRST_DUPLICATE):
        covered = _cover(repeated.of(n), ends) / size
        if covered > share:
            found = _walk(repeated.of(n), ends) / size
            if found > share:
                yield f"repeated_{n}gram", f"{found:.4g} of characters repeat {n}-grams, at most {share:.4g}"
        if covered <= min(shares[n - _FIRST_DUPLICATE :]):
            return


def _cover(repeated: _Ngrams, ends: list[int]) -> int:
    """Return the characters of all words that an n-gram covers which stood before, overlaps once."""
    seen: set[tuple[str, ...]] = set()
    characters = counted = 0
    for place, gram in zip(repeated.places, repeated.grams, strict=True):
        if gram in seen:
            characters += ends[place + repeated.n] - ends[max(place, counted)]
            counted = place + repeated.n
        else:
            seen.add(gram)
    return characters


def _walk(repeated: _Ngrams, ends: list[int]) -> int:
    """Return the characters of n-grams that stood before, where none begins within another."""
    seen: set[tuple[str, ...]] = set()
    characters = free = 0
    for place, gram in zip(repeated.places, repeated.grams, strict=True):
        if place < free:
            continue
        if gram in seen:
            characters += ends[place + repeated.n] - ends[place]
            free = place + repeated.n
        else:
            seen.add(gram)
    return characters
