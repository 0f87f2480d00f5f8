"""`distllm cancel`: end a run now, and keep it from being started again."""

from __future__ import annotations

from collections.abc import Sequence


def run(words: Sequence[str]) -> int:
    """End the jobs of a run without saving; jobs of its chain that still wait will not start it."""
    from distllm.cluster.preparations import is_preparation
    from distllm.commands.verbs import ask, end_jobs

    path, _ = ask("cancel", words)
    jobs = end_jobs(path)
    print(f"cancelled: job {', '.join(jobs)}" if jobs else f"{path} has no job in the queue")
    kept = "its finished stages" if is_preparation(path) else "its last checkpoint"
    print(f"it will not be started again; to resume from {kept}, submit it again")
    return 0
