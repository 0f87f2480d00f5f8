"""Keys of low-rank adapters (LoRA), which are trained in place of a model's own weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from distllm.config.options import option

Projection: TypeAlias = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
JOINED: Mapping[str, tuple[Projection, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "kv_proj": ("k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Matrices of ours that hold several projections, by rows, in this order."""
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
PARTS: Mapping[str, tuple[Projection, ...]] = {**JOINED, **{name: (name,) for name in PROJECTIONS}}
"""The projections of each matrix of ours that can be adapted."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021): the weights that a run begins with stay as they are."""

    rank: int = option(
        0,
        "inner width of each adapter; 0: no adapters, all weights are trained",
        on_resume="identity",
        minimum=0,
    )
    alpha: float = option(
        16.0, "an adapter's output is multiplied by alpha / rank", on_resume="identity", minimum=0.0
    )
    dropout: float = option(
        0.0, "share of an adapter's inputs dropped in training", on_resume="schedule",
        minimum=0.0, maximum=0.9,
    )  # fmt: skip
    targets: tuple[Projection, ...] = option(
        ("q_proj", "v_proj"),
        "projections that are adapted, in every attention and MLP: q_proj, k_proj, v_proj, o_proj, "
        "gate_proj, up_proj, down_proj",
        on_resume="identity",
    )
    init_from: str | None = option(
        None, "folder of a peft adapter to continue from; it sets rank, alpha and targets"
    )
