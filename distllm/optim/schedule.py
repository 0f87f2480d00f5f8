"""The learning rate as a pure function of tokens seen: there is no state to save."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from distllm.registry import Registry


@dataclass(frozen=True, slots=True)
class LearningRate:
    """Linear warm-up, then a shape down to a floor.

    A step's rate is computed from the tokens seen after the step. So the first step of a warm-up does not
    have a rate of zero, and the last step has exactly the floor.

    Attributes:
        name: shape after warm-up: constant, linear, cosine (Loshchilov & Hutter 2017), wsd (hold, then
            decay linearly; "MiniCPM", arXiv:2404.06395) or inverse_sqrt (Vaswani et al. 2017).
        peak: rate at the end of warm-up.
        warmup_tokens: length of the warm-up.
        total_tokens: length of the run; the rate stays at the floor beyond it.
        tokens_per_step: tokens of one step.
        final_fraction: the floor, as a share of ``peak``; a constant rate does not fall to it, and an
            inverse root only as long as it lasts.
        decay_fraction: share of the tokens after warm-up in which wsd decays.
    """

    name: str
    peak: float
    warmup_tokens: int
    total_tokens: int
    tokens_per_step: int
    final_fraction: float
    decay_fraction: float = 0.2

    def at(self, seen: int) -> float:
        """Return the rate of the step after which ``seen`` tokens have been seen."""
        if seen < self.warmup_tokens:
            return self.peak * seen / self.warmup_tokens
        left = SHAPES[self.name](self, seen)
        return self.peak * (self.final_fraction + (1.0 - self.final_fraction) * left)

    def progress(self, seen: int) -> float:
        """Return the fraction of the run after warm-up that is done, at most 1."""
        decay_tokens = max(1, self.total_tokens - self.warmup_tokens)
        return min(1.0, (seen - self.warmup_tokens) / decay_tokens)


def _constant(rate: LearningRate, seen: int) -> float:
    return 1.0


def _linear(rate: LearningRate, seen: int) -> float:
    return 1.0 - rate.progress(seen)


def _cosine(rate: LearningRate, seen: int) -> float:
    return (1.0 + math.cos(math.pi * rate.progress(seen))) / 2


def _wsd(rate: LearningRate, seen: int) -> float:
    if rate.decay_fraction == 0.0:
        return 1.0
    return min(1.0, (1.0 - rate.progress(seen)) / rate.decay_fraction)


def _inverse_sqrt(rate: LearningRate, seen: int) -> float:
    """Return what is left of an inverse square root; without warm-up it begins at the first step."""
    first = max(rate.warmup_tokens, rate.tokens_per_step)
    falling = math.sqrt(first / max(first, min(seen, rate.total_tokens)))
    return max(0.0, (falling - rate.final_fraction) / max(1e-12, 1.0 - rate.final_fraction))


# Each returns the share of the way from peak to floor that is left when ``seen`` tokens have been seen.
SHAPES: Registry[Callable[[LearningRate, int], float]] = Registry(
    "schedule",
    "schedule.name",
    {
        "constant": _constant,
        "linear": _linear,
        "cosine": _cosine,
        "wsd": _wsd,
        "inverse_sqrt": _inverse_sqrt,
    },
)
