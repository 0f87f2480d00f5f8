"""How the loop's time is spent, phase by phase."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

Phase = Literal["data", "compute", "update", "loop"]


@dataclass(frozen=True, slots=True)
class Phases:
    """Seconds of one step: waiting for data, forward and backward, optimizer, everything else."""

    data: float
    compute: float
    update: float
    loop: float

    @property
    def total(self) -> float:
        """Seconds from the end of the step before to the end of this one."""
        return self.data + self.compute + self.update + self.loop


class StepClock:
    """Charges the time between two marks to a phase, so that the phases add up to the whole time."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Discard the time so far: an evaluation or a checkpoint belongs to no step."""
        self._spent: dict[Phase, float] = {"data": 0.0, "compute": 0.0, "update": 0.0, "loop": 0.0}
        self._marked = time.perf_counter()

    def mark(self, phase: Phase) -> None:
        """Charge the time since the last mark to ``phase``."""
        now = time.perf_counter()
        self._spent[phase] += now - self._marked
        self._marked = now

    def lap(self) -> Phases:
        """Return the times of this step and begin the next one."""
        phases = Phases(**self._spent)
        self._spent = {"data": 0.0, "compute": 0.0, "update": 0.0, "loop": 0.0}
        return phases
