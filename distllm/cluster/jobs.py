"""The jobs of a run under SLURM: the current or last one, and those queued behind it.

They are the lines of ``RUN/slurm/job``. All jobs of a chain are recorded, so that a run whose next job is
waiting counts as queued, and so that all of them can be removed from the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distllm.cluster.history import HOME
from distllm.fsio import atomic_write_text

_FILE = "job"


def jobs_of(run_dir: Path) -> list[str]:
    """Return the run's job and those queued behind it; none if it was never submitted."""
    path = run_dir / HOME / _FILE
    return path.read_text(encoding="ascii").split() if path.exists() else []


def job_of(run_dir: Path) -> str | None:
    """Return the run's current or last job; None if it was never submitted."""
    return next(iter(jobs_of(run_dir)), None)


def note_jobs(run_dir: Path, jobs: Sequence[str]) -> None:
    """Record the jobs of a new submission, in the order in which they will run."""
    atomic_write_text(run_dir / HOME / _FILE, "".join(f"{job}\n" for job in jobs))


def note_begin(run_dir: Path, job: str) -> None:
    """Record that ``job`` has begun: those before it in the chain are over."""
    known = jobs_of(run_dir)
    note_jobs(run_dir, known[known.index(job) :] if job in known else [job])


def note_successor(run_dir: Path, job: str) -> None:
    """Record that ``job`` replaces the current one, before the rest of the chain."""
    note_jobs(run_dir, [job, *jobs_of(run_dir)[1:]])
