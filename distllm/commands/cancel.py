"""`distllm cancel`: end a run now, so that nothing starts it again."""

from __future__ import annotations

from collections.abc import Sequence


def run(words: Sequence[str]) -> int:
    """End a run's job without saving, and forbid what waits for it to start it again."""
    from distllm.cluster.preparations import is_preparation
    from distllm.commands.verbs import ask, end_jobs

    path, _ = ask("cancel", words)
    jobs = end_jobs(path)
    print(f"cancelled: job {', '.join(jobs)}" if jobs else f"{path} has no job in the queue")
    kept = "what is finished" if is_preparation(path) else "its last checkpoint"
    print(f"nothing starts it again; submit it again to resume from {kept}")
    return 0
