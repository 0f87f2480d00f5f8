"""Stored runs and required options, for the commands that read run directories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from distllm.commands.settle import dataset_facts
from distllm.config.explain import read_explanation
from distllm.config.keys import flatten
from distllm.config.memory_limit import read_memory_limit
from distllm.config.problems import Problems
from distllm.config.resolve import Resolved, World, resolve
from distllm.config.schema import Config
from distllm.config.validate import build
from distllm.config.yaml import from_yaml
from distllm.data.mirror import dataset_directory
from distllm.errors import ConfigError, IntegrityError
from distllm.train.run_directory import RunDirectory, locate_run

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run directory and the configuration of its latest attempt."""

    directory: RunDirectory
    config: Config

    @property
    def dataset(self) -> Path:
        """The dataset directory of the run."""
        return dataset_directory(self.config.data)

    def resolved(self) -> Resolved:
        """Resolve the configuration again, for the ranks that the run had, not for this machine.

        Raises:
            ConfigProblems: its dataset is missing.
        """
        problems = Problems()
        facts = dataset_facts(self.config, problems, needed=True)
        size = read_explanation(self.directory.explanation)["world_size"]["value"]
        world = World(size, size, "the run's latest attempt")
        return resolve(
            self.config,
            world=world,
            dataset=facts,
            memory_limit=read_memory_limit(self.directory.path),
            problems=problems,
            starts_here=False,
        )


def run_of(name: str, runs_dir: str) -> StoredRun:
    """Open the run ``name`` (or the directory ``name``).

    Raises:
        ConfigError: there is no such run.
        ConfigProblems: its configuration was written by an incompatible version.
        IntegrityError: its configuration is damaged.
    """
    directory = locate_run(name, runs_dir)
    problems, content = Problems(), from_yaml(directory.config)
    config = build(Config, content, problems)
    problems.raise_if_any()
    _require_whole(directory, content)
    return StoredRun(directory, config)


def _require_whole(directory: RunDirectory, content: Mapping[str, Any]) -> None:
    """Refuse a configuration that was cut off: its missing keys would silently get their defaults.

    The run wrote the same keys into its explanation. A key that is in neither was added in a later version.
    """
    if not directory.explanation.exists():
        return
    given = flatten(content)
    lost = [
        key
        for key, entry in read_explanation(directory.explanation).items()
        if entry["from"] != "derived" and key not in given
    ]
    if lost:
        raise IntegrityError(
            f"{directory.config} has lost {len(lost)} of its keys, such as {lost[0]}",
            where=str(directory.config),
            remedy="restore it from a copy, or resume the run with its command, which writes it again",
        )


def require(value: T | None, name: str, command: str) -> T:
    """Return the value of a required option.

    Raises:
        ConfigError: it was not given.
    """
    if value is None:
        raise ConfigError(
            f"{name}=... is missing",
            where=f"distllm {command}",
            remedy=f"see distllm {command} --help",
        )
    return value
