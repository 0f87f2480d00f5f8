"""A fast look for problems of a command line, before Hydra is imported.

Importing Hydra and composing with it takes half a second, too long for the answer to a typo. For
command lines made of plain values this reads the same files and merges them in the same order, only
to find problems: what a run uses, Hydra composes. Where anything is not plain (a user's directory,
an interpolation, a quote, a sweep), it declines. A test holds both to the same result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from distllm.config.compose import PACKAGE_CONF, ROOT_CONFIG
from distllm.config.overrides import Groups, accepted_overrides, split_override, strip_launcher_arguments
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.validate import build, parse_literal
from distllm.config.yaml import from_yaml

_PLAIN = re.compile(r"[\w./+-]*|\[[\w./+,-]*\]")
_OVERRIDE = "override /"


def raise_early(
    overrides: Sequence[str], config_dir: Path | None, check: Callable[[Config, Problems], object]
) -> None:
    """Raise what a fast look finds; a silent return proves nothing.

    Args:
        overrides: the command line's overrides.
        config_dir: a user's directory of groups, which only Hydra reads.
        check: notes further problems of the configuration.

    Raises:
        ConfigProblems: every problem found.
    """
    if config_dir is not None:
        return
    problems = Problems()
    accepted = accepted_overrides(strip_launcher_arguments(overrides), Groups.scan([PACKAGE_CONF]), problems)
    composed = compose_plain(accepted, PACKAGE_CONF)
    if composed is not None:
        check(build(Config, composed, problems), problems)
        problems.raise_if_any()


def compose_plain(overrides: Sequence[str], directory: Path) -> dict[str, Any] | None:
    """Merge groups, experiment and plain overrides as Hydra would; None where only Hydra can tell."""
    parts = [split_override(text) for text in overrides]
    if any(prefix or value is None or not _PLAIN.fullmatch(value) for prefix, _, value in parts):
        return None
    root = from_yaml(directory / f"{ROOT_CONFIG}.yaml")
    choices = {
        group: choice for entry in root["defaults"] if entry != "_self_" for group, choice in entry.items()
    }
    asked = {key: None if value == "null" else value for _, key, value in parts if key in choices}
    experiment = asked.get("experiment")
    layer = from_yaml(directory / "experiment" / f"{experiment}.yaml") if experiment else {}
    for entry in layer.pop("defaults", []):
        choices |= {key.removeprefix(_OVERRIDE): choice for key, choice in entry.items()}
    choices |= asked
    groups = [
        {group: from_yaml(directory / group / f"{choice}.yaml")}
        for group, choice in choices.items()
        if group != "experiment" and choice is not None
    ]
    values = [_nested(key, _plain_value(str(value))) for _, key, value in parts if key not in choices]
    empty: dict[str, Any] = {}
    return reduce(_merged, [*groups, layer, *values], empty)


def _plain_value(text: str) -> Any:
    if text.startswith("["):
        return [parse_literal(item) for item in text[1:-1].split(",") if item]
    return parse_literal(text)


def _nested(key: str, value: Any) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    return {head: _nested(rest, value) if rest else value}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        nested = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(old or {}, value) if nested else value
    return merged
