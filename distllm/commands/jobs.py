"""`distllm jobs`: the state of all runs, from their directories and SLURM's queue."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distllm.commands.arguments import parse_options
from distllm.config.options import option
from distllm.errors import LaunchError
from distllm.units import format_duration

if TYPE_CHECKING:
    from distllm.cluster.preparations import Preparation
    from distllm.cluster.slurm import QueuedJob
    from distllm.cluster.state import RunState

_COLUMNS = ("run", "job", "state", "step", "saved", "ETA", "starts", "where")


@dataclass(frozen=True)
class Options:
    """Options of `distllm jobs`."""

    runs_dir: str = option("runs", "directory that holds run directories")


def run(words: Sequence[str]) -> int:
    """Print a line for each run."""
    options = parse_options("jobs", Options, words)
    home = Path(options.runs_dir)
    marks = ("config.yaml", "slurm")
    found = [path for path in sorted(home.glob("*")) if any((path / mark).exists() for mark in marks)]
    if not found:
        print(f"no run in {home}; start one: distllm train, distllm submit")
        return 0
    queue = queue_if_any(found)
    rows = [_COLUMNS, *(_row_of(path, queue) for path in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def queue_if_any(runs: Iterable[Path]) -> list[QueuedJob] | None:
    """Return SLURM's queue: empty if none of the ``runs`` was submitted, None if it cannot be asked."""
    from distllm.cluster.jobs import jobs_of
    from distllm.cluster.slurm import queued_jobs

    if not any(map(jobs_of, runs)):
        return []
    try:
        return queued_jobs()
    except LaunchError as error:
        print(f"distllm: showing only what the runs have recorded: {error.cause}", file=sys.stderr)
        return None


def _row_of(path: Path, queue: Sequence[QueuedJob] | None) -> tuple[str, ...]:
    from distllm.cluster.preparations import is_preparation, preparation_of
    from distllm.cluster.state import state_of

    if is_preparation(path):
        return _prepared(path, preparation_of(path, queue))
    return _row(state_of(path, queue))


def _prepared(path: Path, state: Preparation) -> tuple[str, ...]:
    where = f"{state.nodes} ({state.running} of {state.queued} tasks)" if state.running else ""
    where = f"({state.reason})" if state.reason else where
    return (path.name, next(iter(state.jobs), "-"), state.state, state.doing, "", "", "", where)


def _row(state: RunState) -> tuple[str, ...]:
    goal = f"/{state.max_steps}" if state.max_steps else ""
    eta = "" if state.eta_seconds is None or state.state == "done" else format_duration(state.eta_seconds)
    where = state.nodes or (f"({state.reason})" if state.reason else "")
    return (
        state.path.name,
        state.job or "-",
        state.state,
        f"{state.step}{goal}",
        str(state.saved),
        eta,
        str(len(state.starts)),
        where + (f" without {','.join(state.excluded)}" if state.excluded else ""),
    )
