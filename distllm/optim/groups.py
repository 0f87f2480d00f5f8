"""Parameter groups: which parameters decay, at which learning rate, and which of them hold matrices.

Weight decay applies to matrices, not to the scales of norms, biases and other vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from distllm.config.mup import rate_factor
from distllm.config.shape import ModelShape
from distllm.units import format_count

# Embeddings and output heads: each of their rows belongs to one token, or to one end of an answer.
_EMBEDDINGS = ("embed_tokens", "lm_head", "head.lm_head", "head.weight")
_TABLES = ("relative.weight",)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a weight decay and a factor of the learning rate.

    Attributes:
        name: label in `describe_groups`.
        weight_decay: decay of every parameter in the group.
        parameters: the parameters, by name.
        lr_scale: factor of the learning rate.
        matrix_rows: rows of the matrices in each parameter that holds any; see `matrix_rows`.
    """

    name: str
    weight_decay: float
    parameters: dict[str, nn.Parameter]
    lr_scale: float = 1.0
    matrix_rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def parameter_groups(
    model: nn.Module, weight_decay: float, *, width_ratio: float = 1.0, decoupled: bool = True
) -> list[ParameterGroup]:
    """Split the trainable parameters, each once, into matrices and vectors; no group is empty.

    Args:
        model: the model.
        weight_decay: decay of matrices.
        width_ratio: the width ratio of muP: hidden matrices get a group with a smaller rate.
        decoupled: decay is multiplied by the rate, so it is raised where the rate is smaller.
    """
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    vectors = {name: parameter for name, parameter in named.items() if parameter.ndim < 2}
    rows = matrix_rows(model)
    groups = dict[float, dict[str, nn.Parameter]]()
    for name, parameter in named.items():
        if name not in vectors:
            scale = rate_factor(name, parameter.ndim, width_ratio)
            groups.setdefault(scale, {})[name] = parameter
    found = [
        ParameterGroup(
            "decay" if scale == 1.0 else f"rate x {scale:g}",
            weight_decay / scale if decoupled else weight_decay,
            groups[scale],
            scale,
            {name: rows[name] for name in groups[scale] if name in rows},
        )
        for scale in sorted(groups, reverse=True)
    ]
    return [*found, *([ParameterGroup("no_decay", 0.0, vectors)] if vectors else [])]


def matrix_rows(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return, by parameter name, the rows of each matrix that maps hidden channels to other channels.

    A parameter may hold several matrices: queries, keys and values, or gate and up projections, are stored as
    one. Vectors, embeddings and output heads hold none and are left out.
    """
    shape: ModelShape | None = getattr(model, "shape", None)
    rows = {}
    for name, weight in model.named_parameters():
        if weight.ndim < 2 or name.startswith(_EMBEDDINGS) or name.endswith(_TABLES):
            continue
        projection = name.removesuffix(".weight").rpartition(".")[2]
        fused = tuple(shape.rows_of(projection).values()) if shape is not None else ()
        rows[name] = fused or (weight.shape[-2],)
    return rows


def torch_groups(groups: list[ParameterGroup]) -> list[dict[str, Any]]:
    """Return ``groups`` in the form torch's optimizers take."""
    return [
        {
            "params": list(group.parameters.values()),
            "weight_decay": group.weight_decay,
            "lr_scale": group.lr_scale,
        }
        for group in groups
    ]


def describe_groups(groups: list[ParameterGroup]) -> str:
    """Return a table: group, weight decay, tensors, parameters."""
    rows = [("group", "weight decay", "tensors", "parameters")]
    for group in groups:
        numel = sum(parameter.numel() for parameter in group.parameters.values())
        rows.append((group.name, f"{group.weight_decay:g}", str(len(group.parameters)), format_count(numel)))
    return "\n".join(f"{name:<14}{decay:>14}{tensors:>9}{numel:>12}" for name, decay, tensors, numel in rows)
