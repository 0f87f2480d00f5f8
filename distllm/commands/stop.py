"""`distllm stop`: ask a run to save its state and end."""

from __future__ import annotations

from collections.abc import Sequence


def run(words: Sequence[str]) -> int:
    """Ask a run to save and stop at the end of its current step; remove its waiting jobs from the queue."""
    from distllm.commands.jobs import queue_if_any
    from distllm.commands.verbs import ask, end_jobs

    path, state = ask("stop", words)
    waiting = end_jobs(path, waiting_only=True) if queue_if_any([path]) else []
    if waiting:
        print(f"removed from the queue: waiting job {', '.join(waiting)}")
    if state == "pending":
        return 0
    print(f"{path} saves at its next step and ends; the same distllm submit or train command resumes it")
    return 0
