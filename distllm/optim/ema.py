"""An average of the weights over the updates, kept by the optimizer like a moment of its own.

So it is partitioned, saved and loaded as moments are, on any number of ranks and under any ZeRO stage.
It begins with zero; who reads it divides by what the updates so far add up to, as Adam does with its
moments (Kingma & Ba 2015, section 3): the average is one of weights after updates alone.
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
        optimizer: whose state holds it.
        decay: share of the average that stays at an update.
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
        """Move the average of each weight that the optimizer holds now."""
        for group in optimizer.param_groups:
            for weight in group["params"]:
                average = optimizer.state[weight].get(SLOT)
                if average is not None:  # engines allocate it; DeepSpeed tries an update before they do
                    average.lerp_(weight.to(average.dtype), 1.0 - self._decay)


def with_average(optimizer: torch.optim.Optimizer, decay: float) -> torch.optim.Optimizer:
    """Let ``optimizer`` move an fp32 average towards its weights after each update; return it.

    Args:
        optimizer: whose weights, as it updates them, are averaged.
        decay: share of the average that stays at an update, from 0 to below 1.
    """
    average = _Average(optimizer, decay)
    optimizer.slots = average.slots  # type: ignore[attr-defined]  # what engines ask for
    optimizer.register_step_post_hook(average.update)
    return optimizer


def total_weight(decay: float, updates: int) -> float:
    """Return what the weights of the updates, at least one, add up to in an average; it divides by that."""
    return 1.0 - float(decay**updates)
