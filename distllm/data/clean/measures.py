"""A text, measured once: words, lines and paragraphs, each computed when a rule first asks.

Shapes: N words of a text.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from distllm.data.clean.punctuation import SYMBOLS
from distllm.data.clean.tokens import words_of

_LINES = re.compile(r"\n+")
_PARAGRAPHS = re.compile(r"\n{2,}")


class Measures:
    """What the rules ask of one text."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def words(self) -> list[str]:
        """Every word, symbols included."""
        return words_of(self.text)

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each word stands in the text."""
        return Counter(self.words)

    @cached_property
    def word_lengths_N(self) -> NDArray[np.int64]:
        """Characters of each word."""
        return np.fromiter(map(len, self.words), dtype=np.int64, count=len(self.words))

    @cached_property
    def plain_words(self) -> tuple[int, int]:
        """Number of words that are not symbols, and their characters."""
        count = characters = 0
        for word, times in self.counts.items():
            if not SYMBOLS.issuperset(word):
                count += times
                characters += times * len(word)
        return count, characters

    @cached_property
    def words_with_letters(self) -> int:
        """Number of words that hold a letter."""
        return sum(times for word, times in self.counts.items() if any(map(str.isalpha, word)))

    @cached_property
    def split_lines(self) -> list[str]:
        """Lines as ``str.splitlines`` has them, blank ones included."""
        return self.text.splitlines()

    @cached_property
    def full_lines(self) -> list[str]:
        """Lines that hold more than spaces."""
        return [line for line in self.text.split("\n") if line.strip()]

    @cached_property
    def duplicate_lines(self) -> tuple[int, int, int]:
        """Number of lines, of those that repeat an earlier one, and characters in these."""
        return _repeats(_LINES.split(self.text))

    @cached_property
    def duplicate_full_lines(self) -> tuple[int, int, int]:
        """As `duplicate_lines`, of the lines that hold more than spaces."""
        return _repeats(self.full_lines)

    @cached_property
    def duplicate_paragraphs(self) -> tuple[int, int, int]:
        """As `duplicate_lines`, of paragraphs: what blank lines part."""
        return _repeats(_PARAGRAPHS.split(self.text.strip()))


def _repeats(pieces: list[str]) -> tuple[int, int, int]:
    seen = Counter(pieces)
    if len(seen) == len(pieces):
        return len(pieces), 0, 0
    characters = sum(len(piece) * (times - 1) for piece, times in seen.items())
    return len(pieces), len(pieces) - len(seen), characters
