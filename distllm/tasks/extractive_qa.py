"""Extractive question answering: where in a text the answer starts and ends.

Shapes: B rows, T positions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from distllm.data.batch import IGNORE_INDEX, Batch
from distllm.data.examples.windows import END, START
from distllm.tasks.base import Task, check_vocabulary, device_of, to_device
from distllm.tasks.segments import segment_log_softmax, segment_numbers


class ExtractiveQA(Task):
    """Mean of the cross-entropies of the first and the last token of the answer, over each window.

    Args:
        vocab_size: ids the model knows.
    """

    unit = "window"
    reads_text = False

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def weight(self, batch: Batch) -> int:
        """Return the number of windows."""
        return int(np.count_nonzero(_flagged(batch, START)))

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss summed over the windows.

        Raises:
            DataError: the batch holds an id that the model does not know.
        """
        check_vocabulary(batch, self.vocab_size, targets_are_ids=False)
        device = device_of(model)
        segments_BT = to_device(batch.segments_BT, device)
        logits_BT2: Tensor = model(
            to_device(batch.tokens_BT, device), to_device(batch.positions_BT, device), segments_BT
        )
        number_BT, count = segment_numbers(segments_BT)
        allowed_BT = to_device(batch.targets_BT, device) != IGNORE_INDEX
        loss = logits_BT2.new_zeros(())
        for side, flag in enumerate((START, END)):
            scores_BT = logits_BT2[..., side].float()
            log_p_BT = segment_log_softmax(scores_BT, allowed_BT, number_BT, count)
            wanted_BT = to_device(_flagged(batch, flag).astype(np.int32), device).bool()
            loss = loss - log_p_BT[wanted_BT].sum() / 2
        return loss


def _flagged(batch: Batch, flag: int) -> NDArray[np.bool_]:
    flags_BT = batch.targets_BT
    flagged_BT: NDArray[np.bool_] = (flags_BT != IGNORE_INDEX) & ((flags_BT & flag) != 0)
    return flagged_BT
