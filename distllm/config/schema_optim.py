"""Keys that say how weights are updated, and at what rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from distllm.config.options import option

Weights: TypeAlias = Literal["last", "ema"]
"""Which weights of a checkpoint: those after the last update, or their average."""
OptimizerName: TypeAlias = Literal["adamw", "adamw_bf16", "adam", "sgd", "lion", "adafactor", "muon"]
WHOLE_MATRICES = ("adafactor", "muon")
"""Optimizers that look at rows and columns of a matrix, which ZeRO's flat partitions have not."""

MUP_OPTIMIZERS = ("adamw", "adam", "lion")
"""Optimizers whose update of a weight does not depend on the size of its gradient."""


@dataclass(frozen=True)
class PrivateConfig:
    """DP-SGD (Abadi et al. 2016): what one row can change of the weights is bounded, and hidden in noise."""

    noise: float | None = option(
        None,
        "standard deviation of the noise, in units of clip; null: not private",
        on_resume="identity",
        minimum=0.01,
    )
    clip: float = option(1.0, "largest norm of the gradient of one row", on_resume="identity", minimum=1e-6)
    delta: float = option(
        1e-5, "chance that the bound epsilon does not hold; below one over the rows",
        on_resume="identity", minimum=1e-15, maximum=0.1,
    )  # fmt: skip


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer."""

    name: OptimizerName = option("adamw", "the update rule", on_resume="identity")
    lr: float = option(1e-3, "peak learning rate", on_resume="schedule", minimum=0.0)
    beta1: float = option(
        0.9, "decay of the first moment; momentum of sgd and muon", on_resume="schedule",
        minimum=0.0, maximum=0.999999999,
    )  # fmt: skip
    beta2: float = option(
        0.95, "decay of the second moment, of lion's momentum", on_resume="schedule",
        minimum=0.0, maximum=0.999999999,
    )  # fmt: skip
    eps: float = option(1e-8, "added to the root of the second moment", on_resume="schedule", minimum=1e-30)
    weight_decay: float = option(
        0.1, "decay of matrices, never of norms and biases; of adam and sgd, an L2 penalty",
        on_resume="schedule", minimum=0.0,
    )  # fmt: skip
    ema: float | None = option(
        None, "decay of an fp32 average of the weights after each update; null keeps none",
        on_resume="identity", minimum=0.0, maximum=0.999999999,
    )  # fmt: skip
    grad_clip: float = option(
        1.0, "largest global gradient norm; 0 turns clipping off", on_resume="schedule", minimum=0.0
    )
    private: PrivateConfig = option(None, "differential privacy", factory=PrivateConfig)


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate as a pure function of tokens seen."""

    name: Literal["constant", "linear", "cosine", "wsd", "inverse_sqrt"] = option(
        "cosine", "shape after warm-up", on_resume="schedule"
    )
    warmup_fraction: float = option(
        0.02, "share of all tokens spent warming up linearly", on_resume="schedule", minimum=0.0, maximum=1.0
    )
    final_lr_fraction: float = option(
        0.1, "share of the peak rate left at the end", on_resume="schedule", minimum=0.0, maximum=1.0
    )
    decay_fraction: float = option(
        0.2, "share of the tokens after warm-up in which wsd decays", on_resume="schedule",
        minimum=0.0, maximum=1.0,
    )  # fmt: skip
