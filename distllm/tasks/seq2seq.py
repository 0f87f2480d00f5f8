"""An encoder reads a source and a decoder writes a target: translation, summaries, span corruption.

Shapes: B rows, S source positions, T target positions.
"""

from __future__ import annotations

from torch import Tensor, nn

from distllm.data.batch import Batch
from distllm.tasks.base import Task, check_vocabulary, count_targets, device_of, to_device


class Seq2Seq(Task):
    """Cross-entropy of each target token, given those before it and the source of its segment.

    Args:
        vocab_size: ids the model knows.
    """

    unit = "token"
    reads_text = False

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def weight(self, batch: Batch) -> int:
        """Return the number of target tokens."""
        return count_targets(batch)

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy summed over the targets.

        Raises:
            DataError: the batch holds an id that the model does not know.
        """
        check_vocabulary(batch, self.vocab_size)
        assert batch.source is not None, "rows of a sequence-to-sequence task have sources"
        device = device_of(model)
        loss: Tensor = model(
            to_device(batch.source.tokens_BS, device),
            to_device(batch.source.positions_BS, device),
            to_device(batch.source.segments_BS, device),
            to_device(batch.tokens_BT, device),
            to_device(batch.positions_BT, device),
            to_device(batch.segments_BT, device),
            to_device(batch.targets_BT, device),
        )
        return loss
