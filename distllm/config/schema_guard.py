"""Keys of the guard: which steps are skipped, and when the run goes back to a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from distllm.config.options import option


@dataclass(frozen=True)
class GuardConfig:
    """Steps that are not finite, spikes, and weights that differ between ranks."""

    window: int = option(
        128,
        "latest finite steps from which the noise of losses and gradient norms is estimated",
        on_resume="schedule",
        minimum=16,
    )
    spike_threshold: float = option(
        8.0,
        "standard deviations of the noise above the latest steps that make a spike; 0 turns it off",
        on_resume="schedule",
        minimum=0.0,
    )
    spike_patience: int = option(
        3, "spikes in a row that send the run back to a checkpoint; fewer are skipped", minimum=1
    )
    skip_budget: int = option(
        10, "non-finite steps in a row that send the run back to a checkpoint", minimum=1
    )
    max_rewinds: int = option(
        3,
        "times that a run goes back; after that, spikes are accepted and non-finite steps end it",
        minimum=0,
    )
    fingerprint_every_steps: int = option(
        100, "steps between comparisons of the weights over ranks; each save compares too; 0 never", minimum=0
    )
