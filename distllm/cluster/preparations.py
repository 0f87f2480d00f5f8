"""A preparation under SLURM: an array whose tasks share the work; each task ends when all of it is done."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distllm.cluster.control import Control
from distllm.cluster.hostlist import compress, expand
from distllm.cluster.jobs import jobs_of
from distllm.cluster.slurm import QueuedJob
from distllm.cluster.snapshot import Submission, submissions_of
from distllm.data.manifest import MANIFEST_FILE
from distllm.fsio import read_tail

SUFFIX = ".prepare"
"""Suffix of the directories that hold the submissions of preparations."""
_PROGRESS = re.compile(rb"^  (\w+) +.*\((\d+)%\)", re.MULTILINE)
_TAIL_BYTES = 1 << 14


@dataclass(frozen=True, slots=True)
class Preparation:
    """What is known of a preparation.

    Attributes:
        submission: the newest submission.
        out: the dataset that it makes.
        jobs: its arrays, the newest first.
        state: the state of its tasks in SLURM, else ``done``, ``cancelled`` or ``failed``; ``unknown`` if
            SLURM cannot be asked and there is no dataset.
        reason: why tasks wait, if none is running.
        nodes: the nodes on which tasks run.
        running: number of tasks that run.
        queued: number of tasks that run or wait.
        doing: the current stage and its progress, while tasks run.
    """

    submission: Submission
    out: str
    jobs: tuple[str, ...]
    state: str
    reason: str
    nodes: str
    running: int
    queued: int
    doing: str


def is_preparation(run_dir: Path) -> bool:
    """Whether ``run_dir`` is the directory of a preparation."""
    return run_dir.name.endswith(SUFFIX) and bool(submissions_of(run_dir.absolute()))


def preparation_of(run_dir: Path, queue: Sequence[QueuedJob] | None) -> Preparation:
    """Return the state of the preparation in ``run_dir``; ``queue`` is None if SLURM cannot be asked."""
    submission, jobs = Submission.load(submissions_of(run_dir.absolute())[-1]), jobs_of(run_dir)
    mine = [task for task in queue or () if task.job in jobs]
    running = [task for task in mine if task.state != "PENDING"]
    out = submission.config().data.out
    return Preparation(
        submission=submission,
        out=out,
        jobs=tuple(dict.fromkeys(job.partition("_")[0] for job in jobs)),
        state=(running or mine)[0].state.lower() if mine else _ended_how(run_dir, submission, out, queue),
        reason=mine[0].reason if mine and not running else "",
        nodes=compress(host for task in running for host in expand(task.nodes)),
        running=len(running),
        queued=len(mine),
        doing=progress_of(submission) if running else "",
    )


def _ended_how(run_dir: Path, submission: Submission, out: str, queue: Sequence[QueuedJob] | None) -> str:
    if "://" not in out and (submission.directory / out / MANIFEST_FILE).exists():
        return "done"
    if Control(run_dir).asked("cancel") is not None:
        return "cancelled"
    return "unknown" if queue is None or "://" in out else "failed"


def progress_of(submission: Submission) -> str:
    """Return the stage that a task reported last, and its progress: ``clean 59%``."""
    logs = sorted(submission.path.glob("job-*.log"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in logs:
        if reported := _PROGRESS.findall(read_tail(path, _TAIL_BYTES)):
            stage, percent = reported[-1]
            return f"{stage.decode()} {percent.decode()}%"
    return ""
