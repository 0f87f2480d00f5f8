"""`distllm save`: ask a run to save its state now and continue."""

from __future__ import annotations

from collections.abc import Sequence


def run(words: Sequence[str]) -> int:
    """Ask a run to save at the end of its current step."""
    from distllm.commands.verbs import ask

    path, _ = ask("save", words)
    print(f"{path} saves at its next step and continues")
    return 0
