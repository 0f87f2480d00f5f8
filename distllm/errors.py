"""The error tree: every failure a user can cause has a class, a cause, a place and a remedy.

DistllmError
├── ConfigError            exit 64  a value, key or combination in the configuration is wrong
│   └── ConfigProblems     exit 64  all problems of one configuration, reported at once
├── RunDirectoryBusy       exit 64  another live process owns the run directory
├── IntegrityError         exit 65  bytes on disk are not what was written
│   ├── DataError          exit 65  a source, shard, index or manifest cannot be used
│   ├── TokenizerError     exit 65  a tokenizer cannot be read or does not fit
│   └── CheckpointError    exit 65  a checkpoint cannot be trusted or does not fit
├── TrainingError          exit 70  the run cannot continue, a retry may help
├── OutOfMemory            exit 70  a rank ran out of memory; the next attempt uses smaller micro-batches
├── LaunchError            exit 70  ranks could not be started or one of them died
├── MissingDependency      exit 64  an optional package is needed for this command
├── StorageError           exit 74  disk full, read-only or not permitted
└── Interrupted            exit 75  asked to stop; state is saved, run the same command again
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound="DistllmError")


class DistllmError(Exception):
    """Base of all errors raised on purpose.

    Args:
        cause: what is wrong, in one sentence, with the offending value.
        where: the configuration key, file or rank that it was found at.
        remedy: what the user can do about it.

    Attributes:
        exit_code: exit code of the process.
        everywhere: every rank raises this same error, so that only rank 0 needs to print it.
        made_at: file and line that raised it, from which `distllm.messages` finds its page.
    """

    exit_code = 70
    everywhere = False

    def __init__(self, cause: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.cause = cause
        self.where = where
        self.remedy = remedy
        self.made_at: tuple[str, int] | None = calling_line(1)
        super().__init__(cause)

    def __str__(self) -> str:
        lines = [self.cause]
        if self.where:
            lines.append(f"  where:  {self.where}")
        if self.remedy:
            lines.append(f"  remedy: {self.remedy}")
        return "\n".join(lines)

    def recast(
        self, kind: type[Kind], *, where: str | None, remedy: str | None, cause: str | None = None
    ) -> Kind:
        """Return this error with another class, place, remedy or cause; its page stays the same."""
        error = kind(cause or self.cause, where=where, remedy=remedy)
        error.made_at = self.made_at
        return error

    def facts(self) -> dict[str, Any]:
        """Return plain values from which `error_from_facts` makes the same error on another rank."""
        facts = {
            "error": type(self).__name__,
            "cause": self.cause,
            "where": self.where,
            "remedy": self.remedy,
        }
        return {**facts, "made_at": self.made_at}


class ConfigError(DistllmError):
    """One value, key or combination in the configuration is wrong."""

    exit_code = 64


class ConfigProblems(ConfigError):
    """All problems of one configuration, collected before anything is started."""

    def __init__(self, problems: Sequence[ConfigError]) -> None:
        if not problems:
            raise ValueError("ConfigProblems needs at least one problem")
        self.problems = tuple(problems)
        plural = "problem" if len(problems) == 1 else "problems"
        super().__init__(f"{len(problems)} {plural} in the configuration")

    def __str__(self) -> str:
        numbered = [f"{i}. {problem}" for i, problem in enumerate(self.problems, 1)]
        return "\n".join([f"{self.cause}:", *numbered])


class RunDirectoryBusy(DistllmError):
    """Another live process owns the run directory."""

    exit_code = 64


class MissingDependency(DistllmError):
    """An optional package is needed for this command and is not installed."""

    exit_code = 64


class IntegrityError(DistllmError):
    """Bytes on disk are not what was written, or contradict each other."""

    exit_code = 65


class DataError(IntegrityError):
    """A source, shard, index or manifest cannot be used."""


class TokenizerError(IntegrityError):
    """A tokenizer cannot be read, or does not fit the data or model."""


class CheckpointError(IntegrityError):
    """A checkpoint cannot be trusted, or does not fit this run."""


class TrainingError(DistllmError):
    """The run cannot continue; a retry may help."""


class OutOfMemory(DistllmError):
    """A rank ran out of memory; the next attempt uses half the micro-batch."""


class LaunchError(DistllmError):
    """Ranks could not be started, or one of them died."""


class StorageError(DistllmError):
    """The disk is full, read-only, or not permitted."""

    exit_code = 74


class Interrupted(DistllmError):
    """The run was asked to stop; its state is saved and the same command continues it."""

    exit_code = 75


def error_from_facts(facts: dict[str, Any]) -> DistllmError:
    """Return the error that `DistllmError.facts` describes."""
    kind: type[DistllmError] = globals()[facts["error"]]
    error = kind(facts["cause"], where=facts["where"], remedy=facts["remedy"])
    error.made_at = tuple(facts["made_at"]) if facts["made_at"] else None
    return error


def calling_line(above: int) -> tuple[str, int] | None:
    """Return file and line of the call of the caller, ``above`` calls further up; None if there is none."""
    try:
        frame = sys._getframe(above + 1)
    except ValueError:
        return None
    return frame.f_code.co_filename, frame.f_lineno
