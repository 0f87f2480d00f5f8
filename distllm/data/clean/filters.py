"""Filters of a user's own, found by name among the entry points of the group ``distllm.filters``.

A filter is a function from a ``Document`` to a ``Document`` (perhaps edited) or the reason, a string,
why it is dropped. A package offers it with

    [project.entry-points."distllm.filters"]
    no_poems = "my_package.filters:no_poems"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from distllm.config.checks_clean import filter_remedy, offered_filters
from distllm.data.records import Document
from distllm.errors import ConfigError

Filter = Callable[[Document], Document | str]


def find_filters(names: Sequence[str]) -> list[Filter]:
    """Return the filters called ``names``.

    Raises:
        ConfigError: no installed package offers one of them.
    """
    offered = offered_filters() if names else {}
    for name in names:
        if name not in offered:
            raise ConfigError(f"unknown filter {name!r}", where="clean.filters", remedy=filter_remedy(name))
    return [offered[name].load() for name in names]
