"""When a checkpoint is due: at a fixed interval of steps, or at the one that minimises lost time.

With M the mean time to failure of the whole job and C the seconds for which a save blocks training, a run
that saves every T seconds loses about C/T + T/2M of its time, which is least at T = sqrt(2 C M) (Young,
CACM 17(9), 1974; Daly, FGCS 22(3), 2006, whose higher-order terms matter only if C is not small compared
with M). M is configured; C and the duration of a step are measured.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

from distllm.config.schema_checkpoint import CheckpointConfig

_SAVES, _STEPS = 5, 32  # the latest ones; their median is the cost
_WORTH_CHANGING = 0.2  # relative change; measured times always vary a little


def young_daly_seconds(save_seconds: float, mttf_seconds: float) -> float:
    """Return the time between two checkpoints that loses least, in seconds."""
    return math.sqrt(2 * save_seconds * mttf_seconds)


class SaveInterval:
    """Says after which steps a checkpoint is due.

    Without a stated mean time to failure that is every ``checkpoint.every_steps`` steps. With one,
    rank 0 derives the number of steps, of which ``every_steps`` is an upper bound and which holds
    until a save was measured. Clocks differ between ranks, so they all go by rank 0's number: it
    travels with the reduction before each step (`proposal`, `agree`).

    Args:
        config: ``every_steps`` and ``mttf_hours``.
        step: the step of the checkpoint that the run comes from; 0 if it begins.
    """

    def __init__(self, config: CheckpointConfig, step: int) -> None:
        self._every = config.every_steps
        self._mttf = config.mttf_hours * 3600 if config.mttf_hours is not None else None
        self._saved_step = step
        self._saves: deque[float] = deque(maxlen=_SAVES)
        self._steps: deque[float] = deque(maxlen=_STEPS)
        self._proposed = self._agreed = config.every_steps
        self._derived = False

    def count_step(self, seconds: float) -> None:
        """Note how long a step took."""
        self._steps.append(seconds)

    def count_save(self, step: int, seconds: float) -> str | None:
        """Note that the checkpoint of ``step`` was written, and how long that kept the training.

        Returns:
            The interval with its formula, if it was derived for the first time or has changed.
        """
        self._saved_step = step
        self._saves.append(seconds)
        if self._mttf is None or not self._steps:
            return None
        cost, step_seconds = median(self._saves), median(self._steps)
        best = young_daly_seconds(cost, self._mttf) / step_seconds
        steps = max(1, min(self._every, round(best)))
        if self._derived and abs(steps - self._proposed) <= _WORTH_CHANGING * self._proposed:
            return None
        self._proposed, self._derived = steps, True
        return (
            f"checkpoints every {steps} steps: sqrt(2 x {cost:.3g} s a save x checkpoint.mttf_hours "
            f"{self._mttf / 3600:g} h) / {step_seconds:.3g} s a step = {best:.1f}, "
            f"at most checkpoint.every_steps = {self._every}"
        )

    @property
    def proposal(self) -> int:
        """The number of steps that this rank has derived; rank 0's is the one to agree on."""
        return self._proposed

    def agree(self, steps: int) -> None:
        """Go by rank 0's number of steps from now on."""
        self._agreed = steps

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step`` steps; the same on every rank."""
        if self._mttf is None:
            return step % self._every == 0
        return step - self._saved_step >= self._agreed
