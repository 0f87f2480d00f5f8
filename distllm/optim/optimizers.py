"""From a configuration to an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from distllm.config.schema_optim import OptimConfig
from distllm.optim.ema import with_average
from distllm.optim.groups import ParameterGroup, parameter_groups, torch_groups
from distllm.optim.rules import Adafactor, Lion, MuonWithAdamW, Sgd
from distllm.registry import Registry

Builder = Callable[[list[ParameterGroup], OptimConfig], torch.optim.Optimizer]


def build_optimizer(model: nn.Module, config: OptimConfig, width_ratio: float = 1.0) -> torch.optim.Optimizer:
    """Build the optimizer ``config.name`` over all trainable parameters of ``model``.

    ``width_ratio`` is muP's; see `groups_of`.

    Raises:
        ConfigError: the name is unknown.
    """
    groups = groups_of(model, config, width_ratio)
    optimizer = OPTIMIZERS[config.name](groups, config)
    return optimizer if config.ema is None else with_average(optimizer, config.ema)


def groups_of(model: nn.Module, config: OptimConfig, width_ratio: float = 1.0) -> list[ParameterGroup]:
    """Return the parameters grouped by decay and rate; see `parameter_groups`."""
    decoupled = config.name not in ("adam", "sgd")
    return parameter_groups(model, config.weight_decay, width_ratio=width_ratio, decoupled=decoupled)


def adamw(groups: list[ParameterGroup], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), updated by one fused kernel."""
    return torch.optim.AdamW(
        torch_groups(groups),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def adamw_bf16(groups: list[ParameterGroup], config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW on bf16 weights with stochastic rounding, no fp32 copy of them."""
    from distllm.optim.stochastic import StochasticAdamW

    return StochasticAdamW(
        torch_groups(groups),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
    )


def adam(groups: list[ParameterGroup], config: OptimConfig) -> torch.optim.Adam:
    """Adam (Kingma & Ba 2015): weight decay, if any, is part of the gradient."""
    return torch.optim.Adam(
        torch_groups(groups),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def sgd(groups: list[ParameterGroup], config: OptimConfig) -> Sgd:
    """Gradient descent with momentum ``beta1``."""
    return Sgd(torch_groups(groups), lr=config.lr, momentum=config.beta1)


def lion(groups: list[ParameterGroup], config: OptimConfig) -> Lion:
    """Lion (Chen et al. 2023)."""
    return Lion(torch_groups(groups), lr=config.lr, betas=(config.beta1, config.beta2))


def adafactor(groups: list[ParameterGroup], config: OptimConfig) -> Adafactor:
    """Adafactor, with the learning rate as the largest relative step of a weight."""
    return Adafactor(torch_groups(groups), lr=config.lr)


def muon(groups: list[ParameterGroup], config: OptimConfig) -> MuonWithAdamW:
    """Muon for the matrices inside the blocks; AdamW for embeddings, output, norms and biases."""
    split = []
    for group in groups:
        for rows, part in _by_matrix_rows(group):
            split += [{**one, "rows": rows} for one in torch_groups([part])]
    return MuonWithAdamW(
        split, lr=config.lr, momentum=config.beta1, betas=(config.beta1, config.beta2), eps=config.eps
    )


def _by_matrix_rows(group: ParameterGroup) -> list[tuple[tuple[int, ...] | None, ParameterGroup]]:
    """Split a group by the rows of the matrices in its parameters; None for those that hold none."""
    parts = dict[tuple[int, ...] | None, dict[str, nn.Parameter]]()
    for name, weight in group.parameters.items():
        parts.setdefault(group.matrix_rows.get(name), {})[name] = weight
    return [(rows, replace(group, parameters=held)) for rows, held in parts.items()]


OPTIMIZERS: Registry[Builder] = Registry(
    "optimizer",
    "optim.name",
    {
        "adamw": adamw,
        "adamw_bf16": adamw_bf16,
        "adam": adam,
        "sgd": sgd,
        "lion": lion,
        "adafactor": adafactor,
        "muon": muon,
    },
)
