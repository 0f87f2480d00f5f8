"""`distllm requeue`: ask a run to save, release its nodes and queue again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distllm.commands.arguments import parse_options
from distllm.commands.verbs import by_whom, directory_of, refuse_preparation
from distllm.config.options import option
from distllm.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """Options of `distllm requeue`."""

    run: str | None = option(None, "name or directory of the run")
    runs_dir: str = option("runs", "directory that holds run directories")
    exclude: str = option("", "nodes that the run must not use again, as n1,n7 or n[1-4]")
    now: bool = option(
        False, "do not wait for the next step: SLURM ends the ranks, which save if they still can"
    )


def run(words: Sequence[str]) -> int:
    """Ask a running job to save and to queue again, without the excluded nodes."""
    options = parse_options("requeue", Options, words)
    from distllm.cluster.control import REQUEUE, Control
    from distllm.cluster.history import History
    from distllm.cluster.hostlist import expand
    from distllm.cluster.slurm import requeue

    path = directory_of(options.run, options.runs_dir, "requeue")
    refuse_preparation(path, "requeue")
    job, why = _running_job(path), f"distllm requeue, by {by_whom()}"
    History(path).exclude(dict.fromkeys(expand(options.exclude), why))
    if options.now:
        requeue(job)
        print(f"job {job} is queued again")
    else:
        Control(path).ask("stop", f"{REQUEUE}: {why}", again=True)
        print(f"{path} saves at its next step, and job {job} queues again")
    return 0


def _running_job(path: Path) -> str:
    """Return the number of the running job of a run.

    Raises:
        ConfigError: no job is running, or it may not be queued again.
    """
    from distllm.cluster.jobs import job_of
    from distllm.cluster.slurm import queued_jobs
    from distllm.cluster.snapshot import Submission, submissions_of

    job = job_of(path)
    states = [queued.state for queued in queued_jobs([job])] if job is not None else []
    if job is None or states != ["RUNNING"]:
        raise ConfigError(
            f"no job of the run is running: {states[0].lower() if states else 'none is in the queue'}",
            where=str(path),
            remedy="details: distllm status; to queue the run again: distllm submit",
        )
    if not Submission.load(submissions_of(path)[-1]).config().cluster.slurm.requeue:
        raise ConfigError(
            "the job may not be queued again: cluster.slurm.requeue=false",
            where=str(path),
            remedy="distllm stop, then distllm submit",
        )
    return job
