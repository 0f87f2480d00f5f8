"""A text, measured once: words, lines and paragraphs, each computed when a rule first asks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cache, cached_property

from distllm.data.clean.tokens import LETTERS, MORE_SYMBOL, SYMBOL, kinds_of, to_split, words_of

_PARAGRAPHS = re.compile(r"\n{2,}")


class Measures:
    """What the rules ask of one text."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def chunks(self) -> list[str]:
        """What spaces part: a chunk is one word or some that stand together."""
        return self.text.split()

    @cached_property
    def words(self) -> list[str]:
        """Every word, symbols included."""
        return words_of(self.chunks)

    @cached_property
    def _to_split(self) -> list[str]:
        return to_split(self.chunks)

    @cached_property
    def _of_letters(self) -> int:
        """Number of chunks that are one word of letters each."""
        return len(self.chunks) - len(self._to_split)

    @cached_property
    def _kinds(self) -> str:
        return kinds_of(self._to_split)

    @cached_property
    def words_count(self) -> int:
        """Number of words, symbols included."""
        return self._of_letters + len(self._kinds) - self._kinds.count(MORE_SYMBOL)

    @cached_property
    def plain_words(self) -> tuple[int, int]:
        """Number of words that are not symbols, and their characters."""
        symbols, more = self._kinds.count(SYMBOL), self._kinds.count(MORE_SYMBOL)
        return self.words_count - symbols, len("".join(self.chunks)) - symbols - more

    @cached_property
    def words_with_letters(self) -> int:
        """Number of words that hold a letter."""
        return self._of_letters + self._kinds.count(LETTERS)

    def count_any(self, words: frozenset[str], enough: float) -> int:
        """Return how many of ``words`` stand in the text, or some number from ``enough`` up."""
        found = _alone(words).intersection(self.chunks)
        if len(found) < enough:
            found |= words.intersection(words_of(filter(_any_of(words), self._to_split)))
        return len(found)

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
        lines = self.text.split("\n")
        if "\n\n" in self.text:  # blank lines part lines too, but for those at the ends
            lines = [*lines[:1], *filter(None, lines[1:-1]), *lines[-1:]]
        return _repeats(lines)

    @cached_property
    def duplicate_full_lines(self) -> tuple[int, int, int]:
        """As `duplicate_lines`, of the lines that hold more than spaces."""
        return _repeats(self.full_lines)

    @cached_property
    def duplicate_paragraphs(self) -> tuple[int, int, int]:
        """As `duplicate_lines`, of paragraphs: what blank lines part."""
        text = self.text.strip()
        return _repeats(_PARAGRAPHS.split(text) if "\n\n\n" in text else text.split("\n\n"))


@cache
def _alone(words: frozenset[str]) -> frozenset[str]:
    """Return those of ``words`` that stay what they are where they stand alone."""
    return frozenset(word for word in words if words_of([word]) == [word])


@cache
def _any_of(words: frozenset[str]) -> Callable[[str], object]:
    """Return what tells whether a chunk holds one of ``words``, perhaps as a part of a word."""
    return re.compile("|".join(map(re.escape, words))).search


def _repeats(pieces: list[str]) -> tuple[int, int, int]:
    if len(set(pieces)) == len(pieces):
        return len(pieces), 0, 0
    seen = Counter(pieces)
    characters = sum(len(piece) * (times - 1) for piece, times in seen.items())
    return len(pieces), len(pieces) - len(seen), characters
