"""What a run measures: one record per logged step and one per evaluation."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from distllm.machine import held_memory


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step.

    ``tokens`` counts target tokens trained on since the run began, ``loss`` is the mean negative
    log-likelihood in nats over this step's global batch, ``grad_norm`` the global L2 norm before
    clipping. ``mfu`` is the share of the machine's peak FLOP/s that the model's own arithmetic
    reached (PaLM, arXiv:2204.02311, appendix B), ``None`` if the peak is unknown;
    ``data_wait_fraction`` the share of the step spent waiting for its batch, ``overhead_fraction``
    the share outside data, forward, backward and update. ``skipped_steps`` counts steps that were
    not applied since the run began, ``attempt`` starts of the run. ``batch_digest`` identifies the
    global batch of the step: equal digests mean equal token ids on every rank. ``damaged_samples``
    counts the samples since the run began that had no loss because their shard is damaged,
    ``rewinds`` how often the run has gone back to a checkpoint. ``chain`` is a hash over this and
    all steps before it. ``epsilon`` is the privacy loss of a private run so far, and ``epsilon_poisson``
    what it would be with randomly drawn batches; see `distllm.train.privacy`.
    """

    step: int
    tokens: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    mfu: float | None
    data_wait_fraction: float
    overhead_fraction: float
    memory_bytes: int
    eta_seconds: float
    skipped_steps: int
    attempt: int
    batch_digest: str
    damaged_samples: int = 0
    rewinds: int = 0
    chain: str = ""
    epsilon: float | None = None
    epsilon_poisson: float | None = None


@dataclass(frozen=True, slots=True)
class EvalRecord:
    """One validation pass: ``loss`` in nats per target, ``bits_per_byte`` of UTF-8 text.

    ``perplexity`` is None if targets are not tokens, ``bits_per_byte`` if they are not a whole text.
    ``sources`` holds the loss of each source if there are several, ``exposure`` the mean exposure of
    canaries in bits, by how often they were planted, as ``x<times>``.
    """

    step: int
    tokens: int
    loss: float
    perplexity: float | None
    bits_per_byte: float | None
    seconds: float
    sources: Mapping[str, float] = field(default_factory=dict)
    exposure: Mapping[str, float] = field(default_factory=dict)


def memory_bytes() -> int:
    """Return the bytes of main memory of this process without pages of files; outside of Linux, its peak."""
    if held := held_memory():
        return held
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
