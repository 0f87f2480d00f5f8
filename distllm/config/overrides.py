"""Command-line overrides: checked for unknown keys and groups before Hydra sees them.

Hydra's advice for a mistyped key is to write ``+key=value``, which adds a key that nothing reads. So keys and
group choices are checked here, all at once, and errors suggest the closest real name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distllm.config.keys import holds_keys, is_key, keys, note_unknown_key, note_wrong_name, wrong_names
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.registry import did_you_mean

EXPERIMENT = "experiment"
_CHOICE = re.compile(r"[\w.-]+")
_OVERRIDE = re.compile(r"(?P<prefix>\+\+|\+|~)?(?P<key>[^=]+?)(?:=(?P<value>.*))?", re.DOTALL)
_LAUNCHER_ARGUMENT = re.compile(r"--local[_-]rank(=\d+)?")


@dataclass(frozen=True, slots=True)
class Groups:
    """The configuration groups and the choices each offers."""

    choices: dict[str, tuple[str, ...]]

    @classmethod
    def scan(cls, directories: Sequence[Path]) -> Groups:
        """List the groups under the configuration directories; the first level names the group."""
        found: dict[str, set[str]] = {}
        for directory in directories:
            for path in sorted(directory.glob("*/*.yaml")):
                found.setdefault(path.parent.name, set()).add(path.stem)
        return cls({group: tuple(sorted(names)) for group, names in sorted(found.items())})


def strip_launcher_arguments(arguments: Iterable[str]) -> list[str]:
    """Drop what launchers append to a script's arguments (``--local_rank=N`` of deepspeed)."""
    return [argument for argument in arguments if not _LAUNCHER_ARGUMENT.fullmatch(argument)]


def split_override(text: str) -> tuple[str, str, str | None]:
    """Split ``++key=value`` into prefix, key and value; the value is None when there is no ``=``."""
    match = _OVERRIDE.fullmatch(text)
    if match is None:
        return "", text, None
    return match["prefix"] or "", match["key"].strip(), match["value"]


def chosen_beside_experiment(overrides: Sequence[str], groups: Groups) -> frozenset[str]:
    """Return the groups that a command line chooses besides an experiment: they override its keys."""
    parts = [split_override(text) for text in overrides]
    chosen = {key for prefix, key, value in parts if not prefix and value and _CHOICE.fullmatch(value)}
    return frozenset(chosen & groups.choices.keys() - {EXPERIMENT} if EXPERIMENT in chosen else ())


def accepted_overrides(overrides: Iterable[str], groups: Groups, problems: Problems) -> list[str]:
    """Return the overrides whose keys and choices exist; note every other one in ``problems``."""
    known = [*keys(Config), *groups.choices]
    return [text for text in overrides if _is_accepted(text, known, groups, problems)]


def _is_accepted(text: str, known: list[str], groups: Groups, problems: Problems) -> bool:
    prefix, key, value = split_override(text)
    if text.startswith("-") or (value is None and prefix != "~"):
        problems.add(
            f"cannot read {text!r}: an override is key=value",
            where="command line",
            remedy="write key=value, such as optim.lr=1e-3; flags are listed by distllm train --help",
        )
        return False
    if key.startswith("hydra."):
        return True
    group = key.split("@")[0]
    if group in groups.choices:
        return _is_choice(group, value, groups, problems)
    # A mapping of names takes only a mapping: `data.sources.wiki=2` is a key without its last part.
    is_mapping = value is None or value.lstrip().startswith(("{", "${"))
    if not is_key(key, keys(Config)) and not (is_mapping and holds_keys(key, keys(Config))):
        note_unknown_key(key, known, problems)
        return False
    wrong = wrong_names(key, keys(Config))
    for path in wrong:
        note_wrong_name(path.rpartition(".")[2], path, problems)
    return not wrong


def _is_choice(group: str, value: str | None, groups: Groups, problems: Problems) -> bool:
    """Whether every plain name in ``value`` (one, or a sweep ``a,b``) is a choice of ``group``."""
    wanted = [] if value in (None, "null", "") else [name.strip() for name in str(value).split(",")]
    missing = [name for name in wanted if _CHOICE.fullmatch(name) and name not in groups.choices[group]]
    for name in missing:
        problems.add(
            f"{group} has no choice {name!r}",
            where=f"{group}={value}",
            remedy=did_you_mean(name, groups.choices[group]),
        )
    return not missing
