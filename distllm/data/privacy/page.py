"""The input of the detectors: a text, and the parts of it with enough digits to be worth searching."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from distllm.config.schema_privacy import PrivacyConfig, PrivacyKind

Span = tuple[int, int]

# Six digits with at most three other characters between neighbours: the least any numeric kind has.
# Repeats are possessive or bounded, here and in all detectors, so no search goes back far.
_DIGITS = re.compile(r"[0-9](?:[^0-9\n]{0,3}+[0-9]){5}(?:[^0-9\n]{0,3}[0-9])*+")
_BEFORE, _AFTER = 24, 8  # "GB82 WEST " may precede the digits of a number, a check letter may follow


@dataclass(frozen=True, slots=True)
class Finding:
    """Characters ``[start, stop)`` of a text are of this kind."""

    kind: PrivacyKind
    start: int
    stop: int


class Page:
    """A text to be searched, and the configuration of the search."""

    def __init__(self, text: str, config: PrivacyConfig) -> None:
        self.text = text
        self.config = config

    @cached_property
    def windows(self) -> list[Span]:
        """The parts of the text that hold runs of digits, in order, apart from each other."""
        merged: list[Span] = []
        for match in _DIGITS.finditer(self.text):
            start, stop = max(0, match.start() - _BEFORE), match.end() + _AFTER
            if merged and start <= merged[-1][1]:
                start = merged.pop()[0]
            merged.append((start, stop))
        return merged

    def among_digits(
        self, pattern: re.Pattern[str], accept: Callable[[re.Match[str]], bool]
    ) -> Iterator[Span]:
        """Yield the accepted matches near digits; after a refusal, search on from the next character."""
        for start, stop in self.windows:
            position = start
            while match := pattern.search(self.text, position, stop):
                if accept(match):
                    yield match.span()
                    position = match.end()
                else:
                    position = match.start() + 1
