"""What changed between two configurations, and what that means for a resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distllm.config.options import OnResume
from distllm.config.schema import Config
from distllm.config.validate import flatten, leaves


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
    """Compare two nested configurations key by key, in the schema's order."""
    old, new = flatten(before), flatten(after)
    return [
        Change(leaf.path, old.get(leaf.path), new.get(leaf.path), leaf.field.metadata["on_resume"])
        for leaf in leaves(Config)
        if _plain(old.get(leaf.path)) != _plain(new.get(leaf.path))
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
