"""Closed tables from names to builders, and the did-you-mean used by every error message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from distllm.errors import ConfigError

T = TypeVar("T")


def edit_distance(a: str, b: str) -> int:
    """Return the insertions, deletions, substitutions and swaps of neighbours that turn a into b.

    This is the optimal string alignment distance (Damerau 1964, each swap counted once).
    """
    a, b = _without_common_ends(a, b)
    two_back: list[int] = []
    previous = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        current = [i]
        for j, other in enumerate(b, 1):
            cost = min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                cost = min(cost, two_back[j - 2] + 1)
            current.append(cost)
        two_back, previous = previous, current
    return previous[-1]


def _without_common_ends(a: str, b: str) -> tuple[str, str]:
    """Return both words without the start and the end they share, which no cheapest edit touches."""
    start = _shared(a, b)
    end = _shared(a[start:][::-1], b[start:][::-1])
    return a[start : len(a) - end], b[start : len(b) - end]


def _shared(a: str, b: str) -> int:
    """Return the length of the longest start that both words have."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((place for place, (ours, theirs) in pairs if ours != theirs), min(len(a), len(b)))


def suggest(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate closest to ``name``, or None when none shares two thirds of it."""
    best, limit = None, max(1, len(name) // 3)
    # What was meant mostly shares its ends with the typo; once it is found the others are cut short.
    for option in sorted(candidates, key=lambda option: sum(map(len, _without_common_ends(name, option)))):
        # Lengths and letters bound the distance from below, far cheaper than the distance itself.
        if abs(len(option) - len(name)) > limit or _letters_apart(name, option) > 2 * limit:
            continue
        found = edit_distance(name.lower(), option.lower())
        if found < limit or (found == limit and (best is None or option < best)):
            best, limit = option, found
    return best


def _letters_apart(a: str, b: str) -> int:
    """Return how many letters one word has and the other has not; an edit changes at most two."""
    ours, theirs = Counter(a.lower()), Counter(b.lower())
    return (ours - theirs).total() + (theirs - ours).total()


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return a remedy sentence: the closest candidate, or the list of all of them."""
    options = sorted(candidates)
    closest = suggest(name, options)
    if closest is not None:
        return f"did you mean {closest!r}?"
    return f"use one of: {', '.join(options)}"


class Registry(Generic[T]):
    """An immutable table of named builders of one kind, such as optimizers.

    Args:
        kind: what the names name, for messages: ``"optimizer"``.
        where: the configuration path that selects an entry: ``"optim.name"``.
        entries: the whole table; nothing can be added later, so importing has no side effects.
    """

    def __init__(self, kind: str, where: str, entries: Mapping[str, T]) -> None:
        self.kind = kind
        self.where = where
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> T:
        """Return the entry ``name``, or raise ConfigError with the closest known name."""
        if name not in self._entries:
            raise ConfigError(
                f"unknown {self.kind} {name!r}",
                where=self.where,
                remedy=did_you_mean(name, self._entries),
            )
        return self._entries[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries)
