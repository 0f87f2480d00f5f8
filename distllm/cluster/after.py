"""Waiting for another job to succeed: whether it still can, and SLURM's condition for it."""

from __future__ import annotations

from collections.abc import Sequence

from distllm.cluster.hostlist import expand
from distllm.cluster.slurm import Task, tasks_of
from distllm.config.problems import Problems
from distllm.errors import LaunchError

PREPARATION = "distllm-prepare-"
"""How the names of jobs begin that prepare a dataset."""
_NEVER = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT")


def check_after(job: str, problems: Problems) -> None:
    """Check that a job can still succeed: SLURM begins at once what waits for one that it does not know."""
    try:
        tasks = tasks_of(job)
    except LaunchError:
        return  # scontrol is not for everybody everywhere
    problems.check(
        bool(tasks),
        f"SLURM knows no job {job}",
        keys=["after"],
        remedy="it ended a while ago, or never was: leave after= out, or correct the number",
    )
    dead = [task for task in tasks if task.state in _NEVER]
    enough = any if _is_preparation(tasks) else all
    problems.check(
        not tasks or enough(task.state not in _NEVER for task in tasks),
        f"job {job} has ended without success: {dead[0].state}" if dead else "",
        keys=["after"],
        remedy="correct what failed and submit it again, or leave after= out",
    )


def success_of(job: str) -> str:
    """Return SLURM's condition that ``job`` has succeeded.

    All tasks of an array must, but for a preparation: the first one that ends well has seen the whole
    dataset, whatever became of the others.
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
