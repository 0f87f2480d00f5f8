"""Keys of a batch-size warm-up."""

from __future__ import annotations

from dataclasses import dataclass

from distllm.config.options import option


@dataclass(frozen=True)
class BatchConfig:
    """Batch-size warm-up: early steps take fewer tokens (Smith et al. 2018; McCandlish et al. 2018)."""

    start_tokens: int | None = option(
        None,
        "tokens of the first steps, train.tokens_per_step over a power of two; null: all steps are equal",
        unit="count",
        on_resume="identity",
        minimum=1,
    )
    warmup_tokens: int = option(
        0,
        "tokens until steps have their full size; each size, twice the one before, lasts equally long",
        unit="count",
        on_resume="identity",
        minimum=0,
    )
