"""How many sequences each step takes: a constant, or sizes that double up to it.

Everything is a function of the step's number, without state, so that a resumed run, the learning rate, the
data order and every command that looks at a step agree.

Shapes: N samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from distllm.config.schema import Config


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps of one size.

    Attributes:
        step: the first of them, from 0.
        sample: position of the first one in the global order, if no samples were excluded before.
        sequences: number of sequences of each step.
    """

    step: int
    sample: int
    sequences: int


@dataclass(frozen=True, slots=True)
class StepSizes:
    """Stages in order; the last goes on for ever. Steps are counted from 0 here."""

    stages: tuple[Stage, ...]

    @classmethod
    def constant(cls, sequences: int) -> StepSizes:
        """Return steps of equal size."""
        return cls((Stage(0, 0, sequences),))

    @classmethod
    def from_config(cls, config: Config) -> StepSizes:
        """Return the sizes that ``batch`` asks for: they double, each for an equal part of its tokens."""
        seq_len, batch = config.data.seq_len, config.batch
        last = config.train.tokens_per_step // seq_len
        if batch.start_tokens is None:
            return cls.constant(last)
        first, samples = batch.start_tokens // seq_len, batch.warmup_tokens // seq_len
        doublings = (last // first).bit_length() - 1
        stages, step, sample = list[Stage](), 0, 0
        for done in range(doublings):
            sequences, until = first << done, samples * (done + 1) // doublings
            steps = max(0, -(-(until - sample) // sequences))
            if steps:
                stages.append(Stage(step, sample, sequences))
            step, sample = step + steps, sample + steps * sequences
        return cls((*stages, Stage(step, sample, last)))

    def at(self, step: int) -> int:
        """Return the sequences of the step with this number."""
        return self._stage(step).sequences

    def before(self, steps: int) -> int:
        """Return the sequences of the first ``steps`` steps together."""
        stage = self._stage(steps)
        return stage.sample + (steps - stage.step) * stage.sequences

    def fitting(self, samples: int) -> int:
        """Return how many whole steps fit in a number of samples."""
        stage = next(stage for stage in reversed(self.stages) if stage.sample <= samples)
        return stage.step + (samples - stage.sample) // stage.sequences

    def steps_of(self, sample_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the steps that take these samples, if no samples were excluded."""
        import numpy as np  # slow to import, and checking a configuration does not need it

        starts = np.array([stage.sample for stage in self.stages])
        place_N = starts.searchsorted(sample_N, side="right") - 1
        firsts = np.array([stage.step for stage in self.stages])
        sizes = np.array([stage.sequences for stage in self.stages])
        step_N: NDArray[np.int64] = firsts[place_N] + (sample_N - starts[place_N]) // sizes[place_N]
        return step_N

    def _stage(self, step: int) -> Stage:
        return next(stage for stage in reversed(self.stages) if stage.step <= step)


def micro_batch_of(sequences: int, bound: int) -> int:
    """Return the largest divisor of a rank's ``sequences`` that is at most ``bound``."""
    return max(size for size in divisors(sequences) if size <= bound)


def divisors(count: int) -> list[int]:
    """Return the divisors of ``count``, ascending; each below the root brings one above it."""
    low = [size for size in range(1, math.isqrt(count) + 1) if count % size == 0]
    return low + [count // size for size in reversed(low) if size * size != count]


def nearest_multiple(value: int, unit: int) -> int:
    """Return the multiple of ``unit``, at least one of it, that is nearest to ``value``."""
    return max(unit, round(value / unit) * unit)
