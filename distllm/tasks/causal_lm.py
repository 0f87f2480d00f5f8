"""One target per position: the next token, the tokens of an answer, or masked tokens.

The batch decides which: see ``distllm.data.corrupt`` and ``distllm.data.examples``.

Shapes: B rows, T positions.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from distllm.data.batch import Batch
from distllm.tasks.base import Task, check_vocabulary, count_targets, device_of, to_device


class CausalLM(Task):
    """Cross-entropy of each target.

    Args:
        vocab_size: ids the model knows.
        mask_documents: attention stays inside a document, and positions restart with each; otherwise a row
            is treated as one text.
        reads_text: whether the targets are a whole text.
    """

    unit = "token"

    def __init__(self, vocab_size: int, *, mask_documents: bool, reads_text: bool = True) -> None:
        self.vocab_size, self.reads_text = vocab_size, reads_text
        self.mask_documents = mask_documents

    def weight(self, batch: Batch) -> int:
        """Return the number of targets."""
        return count_targets(batch)

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy summed over the targets.

        Raises:
            DataError: the batch holds an id that the model does not know.
        """
        check_vocabulary(batch, self.vocab_size)
        device = device_of(model)
        positions_BT = batch.positions_BT
        if not self.mask_documents:
            positions_BT = np.broadcast_to(
                np.arange(positions_BT.shape[1], dtype=np.int32), positions_BT.shape
            )
        loss: Tensor = model(
            to_device(batch.tokens_BT, device),
            to_device(positions_BT, device),
            to_device(batch.segments_BT, device) if self.mask_documents else None,
            to_device(batch.targets_BT, device),
        )
        return loss
