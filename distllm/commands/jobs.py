"""`distllm jobs`: all runs, from their directories and from SLURM's queue together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distllm.commands.arguments import parse_options
from distllm.config.options import option
from distllm.errors import LaunchError
from distllm.units import format_duration

if TYPE_CHECKING:
    from distllm.cluster.slurm import QueuedJob
    from distllm.cluster.state import RunState

_COLUMNS = ("run", "job", "state", "step", "saved", "ETA", "starts", "where")


@dataclass(frozen=True)
class Options:
    """What `distllm jobs` takes."""

    runs_dir: str = option("runs", "directory that holds run directories")


def run(words: Sequence[str]) -> int:
    """Print a line for each run."""
    options = parse_options("jobs", Options, words)
    from distllm.cluster.state import state_of

    queue, home = queue_if_any(), Path(options.runs_dir)
    marks = ("config.yaml", "slurm")
    found = [path for path in sorted(home.glob("*")) if any((path / mark).exists() for mark in marks)]
    if not found:
        print(f"no run in {home}; start one: distllm train, distllm submit")
        return 0
    rows = [_COLUMNS, *(_row(state_of(path, queue)) for path in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def queue_if_any() -> list[QueuedJob]:
    """Return SLURM's queue, or nothing where there is no SLURM."""
    from distllm.cluster.slurm import queued_jobs

    try:
        return queued_jobs()
    except LaunchError:
        return []


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
