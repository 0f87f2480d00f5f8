"""What changed between two configurations, and what that means for a resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from distllm.config.keys import flatten, leaves, merged
from distllm.config.options import OnResume
from distllm.config.schema import Config


@dataclass(frozen=True, slots=True)
class Change:
    """One key whose value differs."""

    key: str
    before: Any
    after: Any
    on_resume: OnResume

    def __str__(self) -> str:
        return f"{self.key}: {self.before!r} -> {self.after!r}"


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Compare two nested configurations key by key, in the schema's order.

    A key that ``before`` lacks was added to the schema later, and counts as its default. If only one of
    them has a name in a mapping, its keys are listed, with None on the other side.
    """
    old, new = {**flatten(asdict(Config())), **flatten(before)}, flatten(after)
    return [
        Change(leaf.path, old.get(leaf.path), new.get(leaf.path), leaf.field.metadata["on_resume"])
        for leaf in leaves(Config, merged(before, after))
        if _plain(old.get(leaf.path)) != _plain(new.get(leaf.path))
    ]


def _plain(value: Any) -> Any:
    """Tuples and lists are equal, and so are an empty mapping and a mapping not mentioned."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()} or None
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
