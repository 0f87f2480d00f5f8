"""The learning rate as a pure function of tokens seen: there is no state to save."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from distllm.registry import Registry

# Each maps progress after warm-up, from 0 to 1, to what is left of the way from peak to floor.
SHAPES: Registry[Callable[[float], float]] = Registry(
    "schedule",
    "schedule.name",
    {
        "constant": lambda progress: 1.0,
        "linear": lambda progress: 1.0 - progress,
        "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2,
    },
)


@dataclass(frozen=True, slots=True)
class LearningRate:
    """Linear warm-up, then a shape down to a floor.

    A step's rate is that of the tokens seen when it is done. So the first step of a warm-up is not
    lost on a rate of zero, and the last step runs at the floor exactly.

    Attributes:
        name: shape after warm-up: constant, linear or cosine (Loshchilov & Hutter 2017).
        peak: rate at the end of warm-up.
        warmup_tokens: length of the warm-up.
        total_tokens: length of the run; the rate stays at the floor beyond it.
        tokens_per_step: tokens of one step.
        final_fraction: the floor, as a share of ``peak``; a constant rate does not fall to it.
    """

    name: str
    peak: float
    warmup_tokens: int
    total_tokens: int
    tokens_per_step: int
    final_fraction: float

    def __call__(self, tokens: int) -> float:
        """Return the rate of the step that begins when ``tokens`` have been seen."""
        seen = tokens + self.tokens_per_step
        if seen < self.warmup_tokens:
            return self.peak * seen / self.warmup_tokens
        decay_tokens = max(1, self.total_tokens - self.warmup_tokens)
        left = SHAPES[self.name](min(1.0, (seen - self.warmup_tokens) / decay_tokens))
        return self.peak * (self.final_fraction + (1.0 - self.final_fraction) * left)
