"""The text of the batches of a step, for `distllm inspect` and `distllm report`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distllm.config.resolve import Resolved
    from distllm.data.batch import Batch
    from distllm.data.order import SampleOrder


def batch_texts(
    resolved: Resolved, step: int, first_sample: int, ranks: Sequence[int]
) -> Iterator[tuple[int, int, int, str]]:
    """Yield (rank, number of the micro-batch from 1, number of micro-batches, text).

    Args:
        resolved: the run.
        step: counted from 1.
        first_sample: position of the step's first sample in the global order.
        ranks: the ranks that are shown.

    Raises:
        DataError: the dataset is missing or damaged.
    """
    from distllm.data.inspect import describe_batch
    from distllm.data.mirror import dataset_directory
    from distllm.data.mixture import open_stream
    from distllm.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(dataset_directory(resolved.config.data))
    for rank in ranks:
        _, stream = open_stream(resolved, rank, resolved.world.size)
        with closing(stream):
            batches = stream.step(first_sample, step - 1)
            for number, batch in enumerate(batches, 1):
                text = describe_batch(batch, tokenizer, _origins(stream.order, batch))
                yield rank, number, len(batches), text


def _origins(order: SampleOrder, batch: Batch) -> list[str]:
    """Return for each row its source, sample and epoch."""
    return [
        f"{order.sources[source].name} sample {sample}, epoch {epoch + 1}"
        for source, epoch, sample in zip(*(p.tolist() for p in order.locate(batch.sample_ids_B)), strict=True)
    ]
