"""Next-token prediction.

Shapes: B rows, T positions.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distllm.data.stream import IGNORE_INDEX, Batch
from distllm.errors import DataError


class CausalLM:
    """Cross-entropy of each next token.

    Args:
        vocab_size: ids the model knows.
        mask_documents: attention stays inside a document, and positions restart with each;
            otherwise a row is read as one text.
    """

    def __init__(self, vocab_size: int, *, mask_documents: bool) -> None:
        self.vocab_size = vocab_size
        self.mask_documents = mask_documents

    def weight(self, batch: Batch) -> int:
        """Return the number of targets."""
        return int(np.count_nonzero(batch.targets_BT != IGNORE_INDEX))

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy summed over the targets.

        Raises:
            DataError: the batch holds an id that the model does not know.
        """
        largest = max(int(batch.tokens_BT.max()), int(batch.targets_BT.max()))
        if largest >= self.vocab_size:
            raise DataError(
                f"token id {largest} is outside the model's vocabulary of {self.vocab_size}",
                where="data.out",
                remedy="train with the tokenizer the dataset was prepared with, or prepare it again",
            )
        device = next(model.parameters()).device
        positions_BT, segments_BT = batch.positions_BT, batch.segments_BT
        if not self.mask_documents:
            positions_BT = np.broadcast_to(
                np.arange(positions_BT.shape[1], dtype=np.int32), positions_BT.shape
            )
        loss: Tensor = model(
            _to(batch.tokens_BT, device),
            _to(positions_BT, device),
            _to(segments_BT, device) if self.mask_documents else None,
            _to(batch.targets_BT, device),
        )
        return loss


def _to(array_BT: NDArray[np.int32], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array_BT)).to(device)
