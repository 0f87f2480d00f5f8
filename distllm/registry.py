"""Fixed tables from names to builders, and the suggestions for misspelt names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from distllm.errors import ConfigError

T = TypeVar("T")
_READABLE = 40


def edit_distance(a: str, b: str) -> int:
    """Return the insertions, deletions, substitutions and swaps of neighbours that turn a into b.

    This is the optimal string alignment distance (Damerau 1964, each swap counted once). A column of
    the textbook's table is held as integers, a bit for each row below the first, since neighbours
    differ by one at most (Hyyrö 2003): a letter of ``b`` costs a few operations, however long ``a`` is.
    """
    if not a:
        return len(b)
    places: dict[str, int] = {}
    for place, letter in enumerate(a):
        places[letter] = places.get(letter, 0) | 1 << place
    rows, last = (1 << len(a)) - 1, 1 << len(a) - 1
    more_than_above, less_than_above = rows, 0
    as_diagonal = same_before = 0
    distance = len(a)
    for letter in b:
        same = places.get(letter, 0)
        swapped = (~as_diagonal & same) << 1 & same_before
        carried = (same & more_than_above) + more_than_above ^ more_than_above
        as_diagonal = carried | same | less_than_above | swapped
        more_than_left = less_than_above | ~(as_diagonal | more_than_above)
        less_than_left = as_diagonal & more_than_above
        distance += bool(more_than_left & last) - bool(less_than_left & last)
        more_than_left = more_than_left << 1 | 1  # the first row grows by one with each letter
        more_than_above = (less_than_left << 1 | ~(as_diagonal | more_than_left)) & rows
        less_than_above = more_than_left & as_diagonal & rows
        same_before = same
    return distance


def suggest(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate closest to ``name``; None if more than a third of its letters differ."""
    typed, closest, limit = name.lower(), None, max(1, len(name) // 3)
    # Lengths bound the distance from below: of those that differ by more, none can be closer.
    words = ((abs(len(option.lower()) - len(typed)), option) for option in candidates)
    for difference, option in sorted(words):
        if difference > limit:
            break
        distance = edit_distance(typed, option.lower())
        if distance < limit or (distance == limit and (closest is None or option < closest)):
            closest, limit = option, distance
    return closest


def ending_with(name: str, paths: Iterable[str]) -> list[str]:
    """Return the paths whose last parts are ``name``: ``optim.lr`` for ``lr``."""
    return [path for path in paths if path.endswith(f".{name}")]


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return a remedy that suggests the closest candidate, or lists those that end with the name, or all.

    A long list is shortened to the groups, or to the number of candidates if there are no groups.
    """
    options = sorted(candidates)
    found = ending_with(name, options)
    closest = suggest(name, options) if len(found) != 1 else found[0]
    if closest is None and not found and (last := suggest(name, {one.rpartition(".")[2] for one in options})):
        found = ending_with(last, options)
        closest = found[0] if len(found) == 1 else None
    if closest is not None:
        return f"did you mean {closest!r}?"
    shown = found or options
    if len(shown) > _READABLE:
        shown = sorted({option.partition(".")[0] for option in shown})
    if len(shown) > _READABLE:
        return f"none of the {len(options)} names is like it"
    return f"use one of: {', '.join(shown)}"


class Registry(Generic[T]):
    """An immutable table of named builders of one kind, such as optimizers.

    Args:
        kind: what an entry is, for messages: ``"optimizer"``.
        where: the configuration key that selects an entry: ``"optim.name"``.
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
