"""What a training objective is: a summed loss, and the number of things it was summed over."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from distllm.data.stream import Batch


class Task(Protocol):
    """An objective.

    Both quantities are sums over rows, so that batches can be cut in any way: the gradient of the
    sum of ``loss_sum`` over the sum of ``weight`` is the same.
    """

    def weight(self, batch: Batch) -> int:
        """Return the number of loss targets in ``batch``; needs no device."""
        ...

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of ``batch`` summed over its targets, a scalar on the model's device."""
        ...
