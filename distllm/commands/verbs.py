"""Requests to a run: what the commands stop, save, cancel and requeue share."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distllm.cluster.control import Control, RequestKind
from distllm.commands.arguments import parse_options
from distllm.config.options import option
from distllm.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """Options of the commands that look at one run, or send it a request."""

    run: str | None = option(None, "name or directory of the run")
    runs_dir: str = option("runs", "directory that holds run directories")


def directory_of(name: str | None, runs_dir: str, command: str) -> Path:
    """Return the directory of a run, including one that has not started yet.

    Raises:
        ConfigError: no run is named, or there is none of this name.
    """
    from distllm.commands.runs import require
    from distllm.train.run_directory import locate_run

    wanted = require(name, "run", command)
    for path in (Path(wanted), Path(runs_dir) / wanted):
        if (path / "slurm").is_dir():
            return path
    return locate_run(wanted, runs_dir).path


def refuse_preparation(path: Path, command: str) -> None:
    """Refuse a command that only works on training runs.

    Raises:
        ConfigError: ``path`` is the directory of a preparation.
    """
    from distllm.cluster.preparations import is_preparation

    if is_preparation(path):
        raise ConfigError(
            f"{path.name} is a preparation; distllm {command} works on training runs",
            where=str(path),
            remedy="distllm cancel ends it; distllm submit prepare continues from the finished stages",
        )


def ask(kind: RequestKind, words: Sequence[str]) -> tuple[Path, str]:
    """Send a request to the run that the command line names; return its directory and its state."""
    from distllm.cluster.state import state_of
    from distllm.commands.jobs import queue_if_any

    options = parse_options(kind, Options, words)
    path = directory_of(options.run, options.runs_dir, kind)
    if kind != "cancel":
        refuse_preparation(path, kind)
    state = state_of(path, queue_if_any([path])).state
    if kind != "cancel" and state in ("done", "new", "failed", "oom", "stopped", "cancelled", "given up"):
        raise ConfigError(
            f"the run is neither running nor waiting: {state}",
            where=str(path),
            remedy="there is nothing to do; details: distllm status",
        )
    Control(path).ask(kind, f"distllm {kind}, by {by_whom()}")
    return path, state


def by_whom() -> str:
    """Return who sends a request, to be recorded with it."""
    return f"{getpass.getuser()} on {socket.gethostname()}"


def end_jobs(path: Path, *, waiting_only: bool = False) -> list[str]:
    """Remove a run's jobs from the queue and end the one that is running; return their numbers.

    Args:
        path: the run directory.
        waiting_only: leave the running job alone.
    """
    from distllm.cluster.jobs import jobs_of
    from distllm.cluster.slurm import call, queued_jobs

    jobs = jobs_of(path)
    queued = {one.job: one.state for one in queued_jobs(jobs)} if jobs else {}
    ended = [job for job in jobs if job in queued and (not waiting_only or queued[job] == "PENDING")]
    if ended:
        call("scancel", *ended)
    return ended
