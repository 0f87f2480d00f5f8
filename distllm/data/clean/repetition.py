"""Gopher's repetition rules: lines, paragraphs and word n-grams that come again.

Decisions equal those of a direct count over tuples of words, up to collisions of 64-bit hashes.

Shapes: N words of a text, G n-grams.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from distllm.config.schema_clean import RepetitionConfig
from distllm.data.clean.measures import Measures
from distllm.data.clean.quality import Verdict
from distllm.data.shingles import hash_ngrams, hash_words

_FIRST_TOP, _FIRST_DUPLICATE = 2, 5


def judge_repetition(text: Measures, config: RepetitionConfig) -> Verdict | None:
    """Return the first rule that refuses the text, and why."""
    if config == RepetitionConfig():
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
    words_N = hash_words(text.words)
    lengths_N = text.word_lengths_N
    for n, share in enumerate(config.max_top_ngram, _FIRST_TOP):
        if words_N.size >= n and (found := _top_chars(words_N, lengths_N, n) / size) > share:
            yield f"top_{n}gram", f"{found:.4g} of characters are in one {n}-gram, at most {share:.4g}"
    yield from _duplicates(words_N, lengths_N, size, config.max_duplicate_ngram)


def _duplicates(
    words_N: NDArray[np.uint64], lengths_N: NDArray[np.int64], size: int, shares: tuple[float, ...]
) -> Iterator[Verdict]:
    """Compare the characters in n-grams that stood before, read left to right without overlap.

    What repeated n-grams cover, repeated shorter ones cover too. So the cover, cheap to count, bounds the
    characters of this n and of all greater ones, and mostly the smallest n settles them all.
    """
    for n, share in enumerate(shares, _FIRST_DUPLICATE):
        if words_N.size < n:
            return
        grams_G = hash_ngrams(words_N, n)
        covered = _cover(grams_G, lengths_N, n) / size
        if covered > share:
            found = _walk(grams_G.tolist(), np.cumsum(lengths_N), n) / size
            if found > share:
                yield f"repeated_{n}gram", f"{found:.4g} of characters repeat {n}-grams, at most {share:.4g}"
        if covered <= min(shares[n - _FIRST_DUPLICATE :]):
            return


def _top_chars(words_N: NDArray[np.uint64], lengths_N: NDArray[np.int64], n: int) -> int:
    """Return the characters, spaces between words included, of all places of the commonest n-gram."""
    _, first, counts = np.unique(hash_ngrams(words_N, n), return_index=True, return_counts=True)
    most = int(counts.max())
    place = int(first[counts == most].min())  # of equally common ones the first in the text
    return (int(lengths_N[place : place + n].sum()) + n - 1) * most


def _cover(grams_G: NDArray[np.uint64], lengths_N: NDArray[np.int64], n: int) -> int:
    """Return the characters of all words that an n-gram covers which stood before, overlaps once."""
    order_G = np.argsort(grams_G, kind="stable")
    sorted_G = grams_G[order_G]
    again_G = np.zeros(grams_G.size, dtype=bool)
    again_G[order_G[1:]] = sorted_G[1:] == sorted_G[:-1]
    if not again_G.any():
        return 0
    covered_N = np.convolve(again_G, np.ones(n, dtype=np.int64)) > 0
    return int(lengths_N[covered_N].sum())


def _walk(grams: list[int], ends_N: NDArray[np.int64], n: int) -> int:
    seen: set[int] = set()
    characters = place = 0
    while place < len(grams):
        if grams[place] in seen:
            characters += int(ends_N[place + n - 1]) - (int(ends_N[place - 1]) if place else 0)
            place += n
        else:
            seen.add(grams[place])
            place += 1
    return characters
