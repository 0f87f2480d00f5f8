"""Which start of a run a process belongs to, so that a later start can shut an earlier one out.

A scheduler that loses sight of a node starts the job again elsewhere while ranks of the first start
may live on. All starts of one job share a line and are numbered; the owner of a run directory gives
way to a later start of its own line, and stops as soon as it is about to publish anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VARIABLE = "DISTLLM_FENCE"
_NO_RUN_ID = ("", "none")


@dataclass(frozen=True, slots=True)
class Fence:
    """A start: the ``line`` it belongs to and its ``number`` on it."""

    line: str
    number: int

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Fence | None:
        """Read it from what a job script, or torchrun, has set; None where nobody numbers starts."""
        line, _, number = env.get(VARIABLE, "").rpartition("@")
        if line and number.isdigit():
            return cls(line, int(number))
        run_id, restarts = env.get("TORCHELASTIC_RUN_ID", ""), env.get("TORCHELASTIC_RESTART_COUNT", "")
        if run_id not in _NO_RUN_ID and restarts.isdigit():
            return cls(f"torchrun {run_id}", int(restarts))
        return None

    def __str__(self) -> str:
        return f"{self.line}@{self.number}"

    def shuts_out(self, owner: Any) -> bool:
        """Whether this start takes the place of an owner that wrote ``owner`` (its ``str``) down."""
        line, _, number = str(owner).rpartition("@")
        return line == self.line and number.isdigit() and int(number) <= self.number
