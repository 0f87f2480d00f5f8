"""A fast check of a command line for problems, before Hydra composes anything.

Importing Hydra and composing takes a third of a second, too long for reporting a typo. This module reads
the same files and merges them in the same order, only to find problems; the configuration of a run is
always composed by Hydra. Plain values are parsed here, others by Hydra's own parser, which is fast compared
with the composition; interpolations are resolved by the same function. Where Hydra has special rules
(sweeps, groups that are left out or not in the defaults, package keywords, other groups in the defaults of
a file), it gives up. Tests check that both give the same result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from distllm.config.compose import (
    PACKAGE_CONF,
    ROOT_CONFIG,
    config_directories,
    resolved_container,
)
from distllm.config.keys import holds_keys, is_key, keys, merged, nested
from distllm.config.overrides import (
    EXPERIMENT,
    Groups,
    accepted_overrides,
    chosen_beside_experiment,
    split_override,
    strip_launcher_arguments,
)
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.validate import build, parse_literal
from distllm.config.yaml import from_yaml
from distllm.errors import ConfigError, IntegrityError

# Words that Hydra's grammar and Python's number formats read alike; it knows more (True, 007, .5).
_WORD = (
    r"(?:[+-]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|[1-9][0-9]*[a-df-zA-DF-Z][a-zA-Z]*"
    r"|(?!(?i:true|false|null|inf|nan)\b)[a-zA-Z_/][a-zA-Z0-9_./-]*|true|false|null)"
)
_PLAIN = re.compile(rf"{_WORD}?|\[(?:{_WORD}(?:,{_WORD})*)?\]")
_CHOICE = re.compile(r"[\w.-]+")
_HEADER = re.compile(r"#\s*@")
_PACKAGE = re.compile(r"_global_|[a-z]\w*(?:\.[a-z]\w*)*")
_OVERRIDE = "override /"


class _NotPlain(Exception):
    """Only Hydra can compose this."""


def raise_early(
    overrides: Sequence[str], config_dir: Path | None, check: Callable[[Config, Problems], object]
) -> None:
    """Raise the problems that the fast check finds; there may be others if it raises nothing.

    Args:
        overrides: the command line's overrides.
        config_dir: a user's directory of groups, searched before the built-in one.
        check: adds further problems of the configuration.

    Raises:
        ConfigProblems: every problem found.
    """
    problems = Problems()
    directories = config_directories(config_dir)
    accepted = accepted_overrides(strip_launcher_arguments(overrides), Groups.scan(directories), problems)
    try:
        composed = compose_plain(accepted, directories)
    except ConfigError as error:
        problems.found.append(error)
    except IntegrityError as error:
        problems.pass_on(error, where=error.where or "--config-dir", remedy="fix this file")
    else:
        if composed is None:
            return
        check(build(Config, composed, problems), problems)
    problems.raise_if_any()


def compose_plain(overrides: Sequence[str], directories: Sequence[Path]) -> dict[str, Any] | None:
    """Merge groups, experiment and overrides as Hydra would; None if only Hydra can.

    Raises:
        ConfigError: an interpolation refers to an unknown key.
        IntegrityError: a chosen file is not a YAML mapping.
    """
    try:
        return _composed(overrides, directories)
    except _NotPlain:
        return None


def _composed(overrides: Sequence[str], directories: Sequence[Path]) -> dict[str, Any]:
    root = from_yaml(PACKAGE_CONF / f"{ROOT_CONFIG}.yaml")
    defaults = [entry for entry in root.pop("defaults") if entry != "_self_"]
    choices = {group: choice for entry in defaults for group, choice in entry.items()}
    parts = [(text, *split_override(text)) for text in overrides]
    asked: dict[str, Any] = {}
    for _, prefix, key, value in parts:
        if key in choices:
            if prefix or key in asked:
                raise _NotPlain
            asked[key] = _value(value)
    experiment = _experiment({**choices, **asked}[EXPERIMENT], directories)
    for entry in experiment.pop("defaults", []):
        choices |= _overridden(entry, choices)
    choices |= asked
    chosen = [group for group, choice in choices.items() if group != EXPERIMENT and choice is not None]
    # Groups from the command line are read first: they are the most likely to need Hydra.
    asked_first = sorted(chosen, key=lambda group: group not in asked)
    read = {group: _group(group, choices[group], directories) for group in asked_first}
    layers = {group: read[group] for group in chosen}
    named = chosen_beside_experiment(overrides, Groups.scan(directories))
    above = [layer for group, layer in layers.items() if group in named]
    empty: dict[str, Any] = {}
    tree = reduce(_laid, [*layers.values(), root, experiment, *above], empty)
    for text, prefix, key, value in parts:
        if key not in choices:
            tree = _overlaid(tree, text, prefix, key, value)
    return _resolved(tree)


def _overlaid(tree: dict[str, Any], text: str, prefix: str, key: str, value: str | None) -> dict[str, Any]:
    """Apply one override of a key; Hydra refuses ``+key=`` if there is a value, ``~key`` if there is none."""
    if not (is_key(key, keys(Config)) or holds_keys(key, keys(Config))):
        raise _NotPlain
    if prefix == "~":
        if value is not None or not _has(tree, key):
            raise _NotPlain
        return _without(tree, key)
    parsed = _value(value)
    if prefix == "+" and not isinstance(parsed, (dict, list)) and _has(tree, key):
        raise _NotPlain
    return _laid(tree, nested(key, parsed))


def _without(tree: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return ``tree`` without the key, which it has."""
    head, _, rest = key.partition(".")
    if rest:
        return {**tree, head: _without(tree[head], rest)}
    return {word: value for word, value in tree.items() if word != head}


def _has(tree: Any, key: str) -> bool:
    for word in key.split("."):
        if not isinstance(tree, Mapping) or word not in tree:
            return False
        tree = tree[word]
    return tree is not None


def _value(value: str | None) -> Any:
    """Return the value of an override as Hydra reads it."""
    if value is None:
        raise _NotPlain
    if _PLAIN.fullmatch(value):
        if value.startswith("["):
            return [parse_literal(item) for item in value[1:-1].split(",") if item]
        return parse_literal(value)
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(f"value={value}")
    except HydraException:
        raise _NotPlain from None
    if parsed.is_sweep_override():
        raise _NotPlain
    return parsed.value()


def _experiment(choice: Any, directories: Sequence[Path]) -> dict[str, Any]:
    """Return an experiment's file, which must be for the root package and override only groups."""
    if choice is None:
        return {}
    content, package = _read(EXPERIMENT, choice, directories)
    if package != "_global_":
        raise _NotPlain
    return content


def _overridden(entry: Any, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an entry of an experiment's defaults chooses."""
    if entry == "_self_":
        return {}
    if not isinstance(entry, Mapping):
        raise _NotPlain
    chosen = {str(key).removeprefix(_OVERRIDE): choice for key, choice in entry.items()}
    if not all(str(key).startswith(_OVERRIDE) for key in entry) or not chosen.keys() <= choices.keys():
        raise _NotPlain
    return chosen


def _group(
    group: str, choice: Any, directories: Sequence[Path], above: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return what a choice holds, above the choices of its own group that its defaults begin with."""
    if choice in above:  # a circle
        raise _NotPlain
    content, package = _read(group, choice, directories)
    defaults = content.pop("defaults", ["_self_"])
    if not isinstance(defaults, list) or defaults[-1:] != ["_self_"]:
        raise _NotPlain
    *bases, _ = defaults
    own = content if package == "_global_" else nested(package or group, content)
    empty: dict[str, Any] = {}
    return reduce(
        _laid, [*(_group(group, base, directories, (*above, choice)) for base in bases), own], empty
    )


def _read(group: str, choice: Any, directories: Sequence[Path]) -> tuple[dict[str, Any], str | None]:
    """Return the content of a choice's file and the package in its header; the first directory wins."""
    if not isinstance(choice, str) or not _CHOICE.fullmatch(choice):
        raise _NotPlain
    path = next((p for folder in directories if (p := folder / group / f"{choice}.yaml").is_file()), None)
    if path is None:
        raise _NotPlain
    content = from_yaml(path)
    head = next((line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()), "")
    if not _HEADER.match(head):
        return content, None
    words = head.lstrip("# ").split()
    if len(words) != 2 or words[0] != "@package" or not _PACKAGE.fullmatch(words[1]):
        raise _NotPlain
    return content, words[1]


def _laid(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    _refuse_unlike(below, above)
    return merged(below, above)


def _refuse_unlike(below: Any, above: Any) -> None:
    """Give up where Hydra does not simply merge mappings and replace other values."""
    if isinstance(below, Mapping) and isinstance(above, Mapping):
        for key, value in above.items():
            _refuse_unlike(below.get(key), value)
    elif any(
        isinstance(one, Mapping) and (isinstance(other, list) or "${" in str(other))
        for one, other in ((below, above), (above, below))
    ):
        raise _NotPlain


def _resolved(tree: dict[str, Any]) -> dict[str, Any]:
    """Resolve interpolations; missing values (``???``) and other errors are left for Hydra to report."""
    text = str(tree)
    if "???" in text:
        raise _NotPlain
    if "${" not in text:
        return tree
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return {str(key): value for key, value in resolved_container(OmegaConf.create(tree)).items()}
    except (OmegaConfBaseException, ValueError):
        raise _NotPlain from None
