"""Filters of a user's own, found by name among the entry points of the group ``distllm.filters``.

A filter is a function from a ``Document`` to a ``Document`` (perhaps edited) or the reason, a string,
why it is dropped. A package offers it with

    [project.entry-points."distllm.filters"]
    no_poems = "my_package.filters:no_poems"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points

from distllm.data.records import Document
from distllm.errors import ConfigError
from distllm.registry import did_you_mean

Filter = Callable[[Document], Document | str]
GROUP = "distllm.filters"


def find_filters(names: Sequence[str]) -> list[Filter]:
    """Return the filters called ``names``.

    Raises:
        ConfigError: no installed package offers one of them.
    """
    offered = {point.name: point for point in entry_points(group=GROUP)}
    for name in names:
        if name not in offered:
            raise ConfigError(
                f"unknown filter {name!r}",
                where="clean.filters",
                remedy=did_you_mean(name, offered)
                if offered
                else f"install a package that offers it as an entry point of the group {GROUP}",
            )
    return [offered[name].load() for name in names]
