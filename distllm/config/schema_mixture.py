"""Keys of the order in which samples of several sources are seen."""

from __future__ import annotations

from dataclasses import dataclass

from distllm.config.options import option


@dataclass(frozen=True)
class PhaseConfig:
    """A stretch of the run with a mixture of its own; it lasts until the next phase."""

    from_tokens: int = option(
        0,
        "tokens after which the phase begins, with the next step",
        unit="count",
        on_resume="schedule",
        minimum=0,
    )
    weights: dict[str, float] = option(
        None,
        "relative share of each source; a source not named is not drawn",
        factory=dict,
        on_resume="schedule",
        minimum=0.0,
    )


@dataclass(frozen=True)
class MixtureConfig:
    """How sources are mixed over the course of a run.

    A run may be resumed with other phases, if they differ only in what it has not come to yet.
    """

    temperature: float = option(
        1.0, "sources without a weight are drawn by tokens^(1/temperature)", on_resume="identity", minimum=1.0
    )
    phases: tuple[PhaseConfig, ...] = option(
        (),
        "mixtures that replace this one after a number of tokens, in ascending order",
        on_resume="schedule",
    )
    window_shards: int | None = option(
        None,
        "shuffle shards, and samples within this many of them; null shuffles all samples",
        on_resume="identity",
        minimum=1,
    )
    seq_len_start: int | None = option(
        None,
        "begin with segments of this many tokens, data.seq_len over a power of two; null: no warm-up",
        on_resume="identity",
        minimum=1,
    )
    seq_len_warmup: int = option(
        0, "tokens until segments span data.seq_len", unit="count", on_resume="identity", minimum=0
    )
