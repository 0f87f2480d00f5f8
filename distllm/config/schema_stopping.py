"""Keys that end a run when it no longer gets better."""

from __future__ import annotations

from dataclasses import dataclass

from distllm.config.options import option

METRICS = ("loss", "perplexity", "bits_per_byte")
OF_SOURCE = "sources."


@dataclass(frozen=True)
class EarlyStoppingConfig:
    """Early stopping (Prechelt 1998): the run ends after evaluations that were not better."""

    patience: int | None = option(
        None,
        "evaluations in a row without a better metric after which the run ends; null: never",
        on_resume="schedule",
        minimum=1,
    )
    metric: str = option(
        "loss",
        "what must decrease: loss, perplexity, bits_per_byte, or sources.NAME for the loss of one source",
        on_resume="schedule",
    )
    min_delta: float = option(
        0.0, "how much lower than the best so far counts as better", on_resume="schedule", minimum=0.0
    )
