"""Jobs that wait for another job: can that one still succeed, and what is SLURM's condition for it."""

from __future__ import annotations

from collections.abc import Sequence

from distllm.cluster.hostlist import expand
from distllm.cluster.slurm import Task, tasks_of
from distllm.config.problems import Problems
from distllm.errors import LaunchError

PREPARATION = "distllm-prepare-"
"""Prefix of the names of jobs that prepare a dataset."""
_FAILED = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT")


def check_after(job: str, problems: Problems) -> None:
    """Check that a job can still succeed. SLURM starts a job at once if the one it waits for is unknown."""
    try:
        tasks = tasks_of(job)
    except LaunchError:
        return  # some sites do not let users run scontrol
    problems.check(
        bool(tasks),
        f"SLURM knows no job {job}",
        keys=["after"],
        remedy="it ended some time ago or never existed: leave after= out, or correct the number",
    )
    dead = [task for task in tasks if task.state in _FAILED]
    enough = any if _is_preparation(tasks) else all
    problems.check(
        not tasks or enough(task.state not in _FAILED for task in tasks),
        f"job {job} has ended without success: {dead[0].state}" if dead else "",
        keys=["after"],
        remedy="fix what failed and submit it again, or leave after= out",
    )


def success_of(job: str) -> str:
    """Return SLURM's condition that ``job`` has succeeded.

    All tasks of an array must succeed, except for a preparation: there one task that succeeds is enough,
    because it has seen the whole dataset completed.
    """
    try:
        tasks = tasks_of(job)
    except LaunchError:
        return f"afterok:{job}"
    if not _is_preparation(tasks) or (len(tasks) < 2 and "[" not in tasks[0].id):
        return f"afterok:{job}"
    return "?".join(f"afterok:{job}_{number}" for task in tasks for number in _numbers(task.id))


def _is_preparation(tasks: Sequence[Task]) -> bool:
    return bool(tasks) and all(task.name.startswith(PREPARATION) for task in tasks)


def _numbers(task: str) -> list[int]:
    """Return the indices in ``7_3`` or ``7_[4-9,12%2]``."""
    listed = task.partition("_")[2].strip("[]").partition("%")[0]
    return [int(number) for number in expand(f"[{listed}]")]
