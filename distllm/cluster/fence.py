"""Fencing: which start of a run a process belongs to, so that a later start can exclude an earlier one.

A scheduler that loses contact with a node starts the job elsewhere, while ranks of the first start may still
be running. All starts of one job share a ``line`` and are numbered. The owner of a run directory has to yield
to a later start of its own line, and stops before it would publish anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

VARIABLE = "DISTLLM_FENCE"
_NO_RUN_ID = ("", "none")


@dataclass(frozen=True, slots=True)
class Fence:
    """A start: the ``line`` it belongs to and its ``number`` there."""

    line: str
    number: int

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Fence | None:
        """Read it from the variables of a job script or torchrun; None if neither started this process."""
        line, _, number = env.get(VARIABLE, "").rpartition("@")
        if line and number.isdigit():
            return cls(line, int(number))
        run_id, restarts = env.get("TORCHELASTIC_RUN_ID", ""), env.get("TORCHELASTIC_RESTART_COUNT", "")
        if run_id not in _NO_RUN_ID and restarts.isdigit():
            return cls(f"torchrun {run_id}", int(restarts))
        return None

    def __str__(self) -> str:
        return f"{self.line}@{self.number}"

    def supersedes(self, owner: object) -> bool:
        """Whether this start takes the place of an owner whose fence, as text, is ``owner``."""
        line, _, number = str(owner).rpartition("@")
        return line == self.line and number.isdigit() and int(number) <= self.number
