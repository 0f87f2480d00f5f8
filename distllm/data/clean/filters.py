"""Filters of a user's own, found by name among the entry points of the group ``distllm.filters``.

A filter is a function from a ``Document`` to a ``Document`` (perhaps edited) or the reason, a string,
why it is dropped. A package offers it with

    [project.entry-points."distllm.filters"]
    no_poems = "my_package.filters:no_poems"

The code is somebody else's: what goes wrong in it is told as the filter's fault, with the document.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from distllm.config.checks_clean import filter_remedy, offered_filters
from distllm.data.records import Document
from distllm.errors import ConfigError, DataError
from distllm.fsio import digest_bytes

Filter = Callable[[Document], Document | str]


def find_filters(names: Sequence[str]) -> list[Filter]:
    """Return the filters called ``names``; each raises a ``DataError`` where the code behind it fails.

    Raises:
        ConfigError: no installed package offers one of them, or it cannot be imported.
    """
    return [_guarded(name, function) for name, function in _load(names)]


def marks_of_filters(names: Sequence[str]) -> list[list[str]]:
    """Return what tells the code of filters from other code: of each its name and its module's digest."""
    return [[name, _digest_of_source(function)] for name, function in _load(names)]


def _load(names: Sequence[str]) -> list[tuple[str, Any]]:
    offered = offered_filters() if names else {}
    found = []
    for name in names:
        if name not in offered:
            raise ConfigError(f"unknown filter {name!r}", where="clean.filters", remedy=filter_remedy(name))
        try:
            found.append((name, offered[name].load()))
        except Exception as error:
            raise ConfigError(
                f"the filter {name!r} cannot be loaded from {offered[name].value}: "
                f"{type(error).__name__}: {error}",
                where="clean.filters",
                remedy="mend or reinstall the package that offers it, or leave it out",
            ) from error
    return found


def _digest_of_source(function: Any) -> str:
    """Return a digest of the module that ``function`` is from; of nothing, if it has no source."""
    module = inspect.getmodule(function)
    try:
        return digest_bytes(inspect.getsource(module).encode() if module else b"")
    except (OSError, TypeError):
        return digest_bytes(b"")


def _guarded(name: str, function: Any) -> Filter:
    def judge(document: Document) -> Document | str:
        try:
            answer = function(document)
        except Exception as error:
            raise _failed(name, document, f"it raised {type(error).__name__}: {error}") from error
        if isinstance(answer, str) or (isinstance(answer, Document) and answer.id == document.id):
            return answer
        shown = f"the document {answer.id}" if isinstance(answer, Document) else repr(answer)
        raise _failed(name, document, f"it returned {shown}, not that document or a reason to drop it")

    return judge


def _failed(name: str, document: Document, how: str) -> DataError:
    return DataError(
        f"the filter {name!r} failed on the document {document.id}: {how}",
        where="clean.filters",
        remedy="a filter returns the document, perhaps edited, or a string that says why it goes",
    )
