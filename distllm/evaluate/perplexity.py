"""Validation loss over held-out samples, sharded over ranks, each counted exactly once.

B: rows of a micro-batch.  N: samples of one source.  S: sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distllm.data.batch import IGNORE_INDEX, Batch, Split
from distllm.data.tokenizer import Tokenizer
from distllm.dist.collectives import sum_over_ranks
from distllm.dist.topology import Topology
from distllm.observe.metrics import EvalRecord
from distllm.tasks.base import Task


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The summed negative log-likelihood of the targets, in nats, and what it was summed over.

    Attributes:
        nll_sum: the sum.
        tokens: number of targets: tokens, or the windows or pairs that a task counts instead.
        text_bytes: UTF-8 bytes of the targets' text; 0 where targets are not text.
        sources: loss of each source, if there are several.
        unit: what ``tokens`` counts.
    """

    nll_sum: float
    tokens: int
    text_bytes: int
    sources: Mapping[str, float] = field(default_factory=dict)
    unit: str = "token"

    @property
    def loss(self) -> float:
        """Nats per target; NaN without any target, as in a split whose documents were all forgotten."""
        return self.nll_sum / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float | None:
        """exp(loss), infinite where that overflows; None where targets are not tokens."""
        if self.unit != "token":
            return None
        return math.inf if self.loss > 700 else math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per UTF-8 byte of text: comparable between tokenizers; None where there is no text."""
        return self.nll_sum / math.log(2) / self.text_bytes if self.text_bytes else None

    def record(self, step: int, tokens: int, seconds: float) -> EvalRecord:
        """Return the figures as the record that sinks take after ``step``."""
        return EvalRecord(
            step=step,
            tokens=tokens,
            loss=self.loss,
            perplexity=self.perplexity,
            bits_per_byte=self.bits_per_byte,
            sources=self.sources,
            seconds=seconds,
        )

    def __str__(self) -> str:
        """The figures in one line."""
        parts = [f"validation loss {self.loss:.4f} nats/{self.unit}"]
        if self.perplexity is not None:
            parts.append(f"perplexity {self.perplexity:.2f}")
        if self.bits_per_byte is not None:
            parts.append(f"{self.bits_per_byte:.4f} bits/byte")
        parts += [f"{name} {loss:.4f}" for name, loss in self.sources.items()]
        return ", ".join([*parts, f"{self.tokens} {self.unit}s"])


def evaluate_perplexity(
    model: nn.Module,
    task: Task,
    split: Split,
    tokenizer: Tokenizer,
    topology: Topology,
    *,
    micro_batch_size: int,
    max_tokens: int | None,
    between: Callable[[], None] = lambda: None,
) -> Perplexity:
    """Measure ``model`` on about ``max_tokens`` tokens of ``split``, evenly spread (all of it if None).

    Collective: every rank runs the same number of forward passes, the last ones perhaps on rows
    without targets, because under ZeRO-3 a forward pass is itself a collective. Samples are taken in
    the order of the split, source by source, so that each source has its own loss. ``between`` is called
    before every batch, equally often on all ranks; an error that it raises ends the measurement.
    """
    wanted = split.num_samples if max_tokens is None else max(1, max_tokens // split.seq_len)
    sample_N = _spread(split.num_samples, min(split.num_samples, wanted))
    ends_S = np.cumsum([source.total for source in split.sources])
    count_bytes = _byte_counter(task, split, tokenizer)
    was_training = model.training
    model.eval()
    sums = []
    with torch.no_grad():
        for own_N in np.split(sample_N, np.searchsorted(sample_N, ends_S[:-1])):
            batches = list(_share(split, own_N, micro_batch_size, topology))
            task.begin(model, batches, topology)
            nll = 0.0
            for batch in batches:
                between()
                nll += float(task.loss_sum(model, batch))
            # Ranks that share rows each have a part of the sum, and count its targets once.
            counts = topology.counts_rows
            sums += [nll, counts * sum(map(task.weight, batches)), counts * sum(map(count_bytes, batches))]
    model.train(was_training)
    totals = np.array(sum_over_ranks(sums, topology)).reshape(-1, 3)
    nll_sum, tokens, text_bytes = totals.sum(axis=0).tolist()
    by_source = {
        source.name: float(nll / weight)
        for source, (nll, weight, _) in zip(split.sources, totals.tolist(), strict=True)
        if weight and len(split.sources) > 1
    }
    return Perplexity(nll_sum, int(tokens), round(text_bytes), by_source, task.unit)


def _spread(total: int, count: int) -> NDArray[np.int64]:
    """Return ``count`` of ``total`` samples, evenly spread over all sources."""
    return np.arange(count, dtype=np.int64) * total // count


class _ByteCounter:
    """Counts the bytes of text that the targets of a batch stand for."""

    def __init__(self, lengths_V: NDArray[np.int64] | None, bytes_per_token: float) -> None:
        self._lengths_V, self._bytes_per_token = lengths_V, bytes_per_token

    def __call__(self, batch: Batch) -> float:
        targets = batch.targets_BT[batch.targets_BT != IGNORE_INDEX]
        if self._lengths_V is None:
            return self._bytes_per_token * len(targets)
        return float(self._lengths_V[targets].sum())


def _byte_counter(task: Task, split: Split, tokenizer: Tokenizer) -> _ByteCounter:
    """Return a counter of bytes; it counts 0 where the targets are not the whole text."""
    if not task.reads_text:
        return _ByteCounter(None, 0.0)
    return _ByteCounter(tokenizer.token_byte_lengths(), split.bytes_per_token)


def _share(split: Split, sample_N: NDArray[np.int64], size: int, topology: Topology) -> Iterator[Batch]:
    """Yield this rank's batches (samples rank, rank + world, ...), all of one size.

    Short ones are filled up with rows without targets.
    """
    if not sample_N.size:
        return
    stride = size * topology.data_ranks
    for start in range(0, sample_N.size, stride):
        place_B = start + topology.data_rank + topology.data_ranks * np.arange(size)
        samples_B = sample_N[np.minimum(place_B, sample_N.size - 1)]
        # Every row has its own sample id, also a row without targets.
        batch = split.batch(samples_B, np.where(place_B < sample_N.size, samples_B, -1 - place_B))
        counted_B1 = (place_B < sample_N.size)[:, None]
        yield replace(batch, targets_BT=np.where(counted_B1, batch.targets_BT, IGNORE_INDEX))
