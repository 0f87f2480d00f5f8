"""An exponential moving average of the weights, kept by the optimizer like a moment.

So it is partitioned, saved and loaded like moments, on any number of ranks and under any ZeRO stage. It
begins with zero, and readers correct this bias as Adam does (Kingma & Ba 2015, section 3): the initial
weights do not contribute to the average.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distllm.dist.engine import slots_of

SLOT = "ema"


class _Average:
    """Keeps the average of one optimizer's weights.

    Args:
        optimizer: its state holds the average.
        decay: factor of the average at an update.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self._decay = decay
        self._own = getattr(optimizer, "slots", None)

    def slots(self, weight: Tensor) -> Mapping[str, torch.Size]:
        """Return the optimizer's own slots of a weight, and the average."""
        own = slots_of(None, weight) if self._own is None else self._own(weight)
        return {**own, SLOT: weight.shape}

    @torch.no_grad()
    def update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Update the average of each weight that the optimizer currently holds."""
        for group in optimizer.param_groups:
            for weight in group["params"]:
                average = optimizer.state[weight].get(SLOT)
                if average is not None:  # engines allocate it; DeepSpeed makes a trial update before that
                    average.lerp_(weight.to(average.dtype), 1.0 - self._decay)


def with_average(optimizer: torch.optim.Optimizer, decay: float) -> torch.optim.Optimizer:
    """Let ``optimizer`` keep an fp32 average of its weights, updated after each step; return it.

    Args:
        optimizer: the optimizer.
        decay: factor of the average at an update, from 0 to below 1.
    """
    average = _Average(optimizer, decay)
    optimizer.slots = average.slots  # type: ignore[attr-defined]  # engines read this attribute
    optimizer.register_step_post_hook(average.update)
    return optimizer


def total_weight(decay: float, updates: int) -> float:
    """Return the sum of the coefficients in an average after ``updates`` updates, which corrects its bias."""
    return 1.0 - float(decay**updates)
