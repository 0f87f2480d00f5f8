"""Parsers of the command line: Hydra overrides with Hydra's flags, or plain ``key=value`` options."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from distllm.config.keys import hints, keys
from distllm.config.overrides import split_override, strip_launcher_arguments
from distllm.config.problems import Problems
from distllm.config.validate import build, describe, parse_literal
from distllm.errors import ConfigError
from distllm.registry import did_you_mean

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ConfigArguments:
    """The parsed command line of a command that composes an experiment."""

    overrides: list[str]
    config_dir: Path | None
    show: bool
    multirun: bool
    flags: frozenset[str] = frozenset()


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises `ConfigError` instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(
            f"cannot read the command line: {message}",
            where="command line",
            remedy=f"see {self.prog} --help",
        )


def parse_config_arguments(
    command: str, what: str, words: Sequence[str], flags: Mapping[str, str] | None = None
) -> ConfigArguments:
    """Parse overrides and Hydra's flags; abbreviated flags are refused.

    Args:
        command: name of the sub-command.
        what: what it does, for its help.
        words: the command line after the command.
        flags: the command's own switches, such as ``--dry-run``, with their help.

    Raises:
        ConfigError: an unknown flag.
    """
    parser = _Parser(
        prog=f"distllm {command}",
        description=what,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="overrides: GROUP=CHOICE (such as model=llama-10m) and key=value (such as optim.lr=1e-3)\n"
        "every key with its help and origin: distllm explain",
    )
    parser.add_argument("overrides", nargs="*", help="Hydra overrides")
    parser.add_argument("--cfg", choices=["job"], help="print the composed configuration and stop")
    parser.add_argument("--config-dir", "-cd", type=Path, help="a directory with more groups and choices")
    parser.add_argument("--multirun", "-m", action="store_true", help="run every combination of a,b,c values")
    own = dict(flags or {})
    parser.set_defaults(flags=None)
    for flag, help_text in own.items():
        parser.add_argument(flag, action="append_const", const=flag, dest="flags", help=help_text)
    known, unknown = parser.parse_known_args(strip_launcher_arguments(words))
    strange = [word for word in unknown if word.startswith("-")]
    if strange:
        options = ["--cfg", "--config-dir", "--multirun", "--help", *own]
        raise ConfigError(
            f"unknown flag {strange[0]!r}",
            where="command line",
            remedy=did_you_mean(strange[0].split("=")[0], options),
        )
    return ConfigArguments(
        overrides=[*known.overrides, *unknown],
        config_dir=known.config_dir,
        show=bool(known.cfg),
        multirun=known.multirun,
        flags=frozenset(known.flags or ()),
    )


def parse_options(command: str, cls: type[T], words: Sequence[str]) -> T:
    """Build the options dataclass ``cls`` from ``key=value`` words.

    Raises:
        SystemExit: after printing the help that ``--help`` asks for.
        ConfigProblems: every unknown key, wrong value or missing option.
    """
    if any(word in ("-h", "--help") for word in words):
        print(_options_help(command, cls))
        raise SystemExit(0)
    problems, known, raw = Problems(), keys(cls), {}
    for word in words:
        _, key, value = split_override(word)
        if value is None:
            problems.add(
                f"cannot read {word!r}",
                where="command line",
                remedy=f"write key=value; distllm {command} takes {', '.join(known)}",
            )
            continue
        raw[key] = parse_literal(value) if not _is_text(cls, key) else value
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]  # T is a dataclass by contract
        if item.default is None and item.metadata.get("required") and item.name not in raw:
            problems.add(
                f"{item.name}=... is missing",
                where=f"distllm {command}",
                remedy=f"give {item.name}=..., {describe(item)}",
            )
    options = build(cls, raw, problems)
    problems.raise_if_any()
    return options


def split_options(cls: type, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line into the words that set options of the dataclass ``cls``, and the others."""
    own = {item.name for item in dataclasses.fields(cls)}
    options: list[str] = []
    others: list[str] = []
    for word in words:
        _, key, value = split_override(word)
        (options if key in own and value is not None else others).append(word)
    return options, others


def _is_text(cls: type, key: str) -> bool:
    return key in hints(cls) and hints(cls)[key] in (str, str | None)


def _options_help(command: str, cls: type) -> str:
    lines = [f"usage: distllm {command} key=value ...", ""]
    for item in dataclasses.fields(cls):
        default = "required" if item.metadata.get("required") else f"default {item.default!r}"
        lines.append(f"  {item.name + '=':<18}{describe(item)} [{default}]")
    return "\n".join(lines)
