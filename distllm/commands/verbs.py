"""What the commands share that ask something of a run: stop, save and cancel."""

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
    """What the commands take that look at, or ask something of, one run."""

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


def ask(wish: Wish, words: Sequence[str]) -> tuple[Path, str]:
    """Leave a request to the run that the command line names; return its directory and SLURM's state."""
    from distllm.cluster.state import state_of
    from distllm.commands.jobs import queue_if_any

    options = parse_options(wish, Options, words)
    path = directory_of(options.run, options.runs_dir, wish)
    state = state_of(path, queue_if_any()).state
    if wish != "cancel" and state in ("done", "new", "failed", "oom", "stopped"):
        raise ConfigError(
            f"the run does not run and does not wait: {state}",
            where=str(path),
            remedy="nothing is left to do; distllm status says more",
        )
    why = f"distllm {wish}, by {getpass.getuser()} on {socket.gethostname()}"
    Control(path).ask(wish, why)
    return path, state


def end_job(path: Path) -> str | None:
    """Take a run's job out of the queue, or end it; return its number, None if there is none."""
    from distllm.cluster.batch import job_of
    from distllm.cluster.slurm import call, queued_jobs

    job = job_of(path)
    if job is None or not queued_jobs([job]):
        return None
    call("scancel", job)
    return job
