"""`distllm stop`: ask a run to save its state and end."""

from __future__ import annotations

from collections.abc import Sequence


def run(words: Sequence[str]) -> int:
    """Ask a run to stop at the next border of a step; take one that waits out of the queue."""
    from distllm.commands.jobs import queue_if_any
    from distllm.commands.verbs import ask, end_jobs

    path, state = ask("stop", words)
    waiting = end_jobs(path, waiting_only=True) if queue_if_any([path]) else []
    if waiting:
        print(f"taken out of the queue, where it was still waiting: job {', '.join(waiting)}")
    if state == "pending":
        return 0
    print(f"{path} saves at its next step and ends; the same distllm submit or train command resumes it")
    return 0
