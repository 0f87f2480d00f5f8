"""Which parameters decay.

Decay keeps matrices small; the scales of norms, biases and other vectors are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from distllm.units import format_count


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share one weight decay."""

    name: str
    weight_decay: float
    parameters: dict[str, nn.Parameter]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[ParameterGroup]:
    """Split the parameters that learn, each once, into matrices and vectors; no group is empty."""
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    matrices = {name: parameter for name, parameter in named.items() if parameter.ndim >= 2}
    vectors = {name: parameter for name, parameter in named.items() if parameter.ndim < 2}
    groups = ParameterGroup("decay", weight_decay, matrices), ParameterGroup("no_decay", 0.0, vectors)
    return [group for group in groups if group.parameters]


def torch_groups(groups: list[ParameterGroup]) -> list[dict[str, Any]]:
    """Return ``groups`` in the form torch's optimizers take."""
    return [
        {"params": list(group.parameters.values()), "weight_decay": group.weight_decay} for group in groups
    ]


def describe_groups(groups: list[ParameterGroup]) -> str:
    """Return a table: group, weight decay, tensors, parameters."""
    rows = [("group", "weight decay", "tensors", "parameters")]
    for group in groups:
        numel = sum(parameter.numel() for parameter in group.parameters.values())
        rows.append((group.name, f"{group.weight_decay:g}", str(len(group.parameters)), format_count(numel)))
    return "\n".join(f"{name:<10}{decay:>14}{tensors:>9}{numel:>12}" for name, decay, tensors, numel in rows)
