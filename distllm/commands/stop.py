"""`distllm stop`: let a run save its state and end."""

from __future__ import annotations

from collections.abc import Sequence


def run(words: Sequence[str]) -> int:
    """Ask a run to stop at the next border of a step; take one that waits out of the queue."""
    from distllm.commands.verbs import ask, end_job

    path, state = ask("stop", words)
    if state == "pending" and (job := end_job(path)) is not None:
        print(f"job {job} was still waiting: taken out of the queue")
        return 0
    print(f"{path} saves at its next step and ends; go on with it later: distllm submit or train, as before")
    return 0
