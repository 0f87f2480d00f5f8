"""Validation loss over held-out samples, sharded over ranks, each counted exactly once.

B: rows of a micro-batch.  T: tokens of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from distllm.data.stream import IGNORE_INDEX, Batch, PackedSplit
from distllm.data.tokenizer import Tokenizer
from distllm.dist.collectives import sum_over_ranks
from distllm.dist.topology import Topology
from distllm.tasks.base import Task


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The summed negative log-likelihood of the targets, in nats, and what it was summed over."""

    nll_sum: float
    tokens: int
    text_bytes: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nll_sum / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of text: comparable between tokenizers."""
        return self.nll_sum / math.log(2) / self.text_bytes


def evaluate_perplexity(
    model: nn.Module,
    task: Task,
    split: PackedSplit,
    tokenizer: Tokenizer,
    topology: Topology,
    *,
    micro_batch_size: int,
    max_tokens: int | None,
) -> Perplexity:
    """Measure ``model`` on about ``max_tokens`` tokens of ``split``, evenly spread (all of it if None).

    Collective: every rank runs the same number of forward passes, the last ones perhaps on rows
    that count nothing, because under ZeRO-3 a forward pass is itself a collective. The split's
    samples are taken in their own order, which training never sees.
    """
    wanted = split.num_samples if max_tokens is None else max(1, max_tokens // split.seq_len)
    num_samples = min(split.num_samples, wanted)
    byte_lengths_V = tokenizer.token_byte_lengths()
    bytes_per_token = split.bytes_per_token
    was_training = model.training
    model.eval()
    nll_sum, tokens, text_bytes = 0.0, 0, 0.0
    with torch.no_grad():
        for batch in _share(split, num_samples, micro_batch_size, topology):
            nll_sum += float(task.loss_sum(model, batch))
            targets = batch.targets_BT[batch.targets_BT != IGNORE_INDEX]
            tokens += len(targets)
            text_bytes += (
                bytes_per_token * len(targets)
                if byte_lengths_V is None
                else int(byte_lengths_V[targets].sum())
            )
    model.train(was_training)
    totals = sum_over_ranks([nll_sum, tokens, text_bytes], topology)
    return Perplexity(totals[0], int(totals[1]), round(totals[2]))


def _share(split: PackedSplit, num_samples: int, size: int, topology: Topology) -> Iterator[Batch]:
    """Yield this rank's batches: samples rank, rank + world, ...; short ones are filled with nothing."""
    stride = size * topology.world_size
    for start in range(0, num_samples, stride):
        wanted = start + topology.rank + topology.world_size * np.arange(size)
        # spread over the split, so that every source has its part
        samples_B = np.minimum(wanted, num_samples - 1) * split.num_samples // num_samples
        batch = split.batch(samples_B, wanted)
        counted_B1 = (wanted < num_samples)[:, None]
        yield replace(batch, targets_BT=np.where(counted_B1, batch.targets_BT, IGNORE_INDEX))
