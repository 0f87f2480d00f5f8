"""What the commands stop, save and cancel share: a request to a run."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distllm.cluster.control import Control, Wish
from distllm.commands.arguments import parse_options
from distllm.config.options import option
from distllm.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """Options of the commands that look at one run, or send it a request."""

    run: str | None = option(None, "name or directory of the run")
    runs_dir: str = option("runs", "directory that holds run directories")


def directory_of(name: str | None, runs_dir: str, command: str) -> Path:
    """Return the directory of a run, also of one that has not begun yet.

    Raises:
        ConfigError: it is not named, or there is none.
    """
    from distllm.commands.runs import require
    from distllm.train.run_directory import locate_run

    wanted = require(name, "run", command)
    for path in (Path(wanted), Path(runs_dir) / wanted):
        if (path / "slurm").is_dir():
            return path
    return locate_run(wanted, runs_dir).path


def refuse_preparation(path: Path, command: str) -> None:
    """Refuse what only a training run can do.

    Raises:
        ConfigError: ``path`` is the directory of a preparation.
    """
    from distllm.cluster.preparations import is_preparation

    if is_preparation(path):
        raise ConfigError(
            f"{path.name} is a preparation, and distllm {command} is for runs",
            where=str(path),
            remedy="distllm cancel ends it; distllm submit prepare goes on from what is finished",
        )


def ask(wish: Wish, words: Sequence[str]) -> tuple[Path, str]:
    """Leave a request to the run that the command line names; return its directory and SLURM's state."""
    from distllm.cluster.state import state_of
    from distllm.commands.jobs import queue_if_any

    options = parse_options(wish, Options, words)
    path = directory_of(options.run, options.runs_dir, wish)
    if wish != "cancel":
        refuse_preparation(path, wish)
    state = state_of(path, queue_if_any([path])).state
    if wish != "cancel" and state in ("done", "new", "failed", "oom", "stopped", "cancelled", "given up"):
        raise ConfigError(
            f"the run does not run and does not wait: {state}",
            where=str(path),
            remedy="nothing is left to do; distllm status says more",
        )
    Control(path).ask(wish, f"distllm {wish}, by {by_whom()}")
    return path, state


def by_whom() -> str:
    """Return who sends a request, for others who look at the run."""
    return f"{getpass.getuser()} on {socket.gethostname()}"


def end_jobs(path: Path, *, waiting_only: bool = False) -> list[str]:
    """Take a run's jobs out of the queue, and end the one that runs; return their numbers.

    Args:
        path: the run directory.
        waiting_only: leave the job that runs alone.
    """
    from distllm.cluster.jobs import jobs_of
    from distllm.cluster.slurm import call, queued_jobs

    jobs = jobs_of(path)
    queued = {one.job: one.state for one in queued_jobs(jobs)} if jobs else {}
    ended = [job for job in jobs if job in queued and (not waiting_only or queued[job] == "PENDING")]
    if ended:
        call("scancel", *ended)
    return ended
