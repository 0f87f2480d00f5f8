"""Closed tables from names to builders, and the did-you-mean used by every error message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from distllm.errors import ConfigError

T = TypeVar("T")

def suggest(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate closest to ``name``, or None when nothing is close."""
    options = list(candidates)
    lowered = {option.lower(): option for option in options}
    matches = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[matches[0]] if matches else None

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

Builder = Callable[..., T]
