"""The protocol of training objectives: a summed loss, and the number of targets it is summed over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distllm.data.batch import IGNORE_INDEX, Batch
from distllm.dist.topology import Topology
from distllm.errors import DataError


class Task(Protocol):
    """An objective.

    Both quantities are sums over rows, so that a batch can be divided in any way: the gradient of the sum of
    ``loss_sum`` divided by the sum of ``weight`` stays the same.

    Attributes:
        unit: what ``weight`` counts: ``"token"``, ``"window"`` or ``"pair"``.
        reads_text: whether the targets are a whole text, so that the loss per byte is defined.
    """

    unit: str
    reads_text: bool

    def weight(self, batch: Batch) -> int:
        """Return the number of loss targets in ``batch``, without using the device."""
        ...

    def begin(self, model: nn.Module, batches: Sequence[Batch], topology: Topology) -> None:
        """Look at all of this rank's micro-batches before a step. Collective.

        For objectives in which the loss of a row depends on other rows; the default does nothing.
        """
        return

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of ``batch`` summed over its targets, a scalar on the model's device."""
        ...


def count_targets(batch: Batch) -> int:
    """Return the number of positions of a batch that have a target."""
    return int(np.count_nonzero(batch.targets_BT != IGNORE_INDEX))


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model."""
    return next(model.parameters()).device


def to_device(array: NDArray[np.int32], device: torch.device) -> Tensor:
    """Return an array as a tensor on ``device``."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def check_vocabulary(batch: Batch, vocab_size: int, *, targets_are_ids: bool = True) -> None:
    """Check that a model knows every id of a batch.

    Raises:
        DataError: it does not.
    """
    parts = [batch.tokens_BT, *([batch.targets_BT] if targets_are_ids else [])]
    parts += [] if batch.source is None else [batch.source.tokens_BS]
    largest = max(int(part.max()) for part in parts)
    if largest >= vocab_size:
        raise DataError(
            f"token id {largest} is outside the model's vocabulary of {vocab_size}",
            where="data.out",
            remedy="train with the tokenizer the dataset was prepared with, or prepare it again",
        )
