"""From a configuration to an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from distllm.config.schema_optim import OptimConfig
from distllm.config.shape import ModelShape
from distllm.optim.ema import with_average
from distllm.optim.groups import ParameterGroup, parameter_groups, torch_groups
from distllm.optim.rules import Adafactor, Lion, MuonWithAdamW, Sgd
from distllm.registry import Registry

Builder = Callable[[list[ParameterGroup], OptimConfig, ModelShape | None], torch.optim.Optimizer]
# Embeddings and heads, whose rows are of one token each, or of one answer's end.
_NO_MATRIX = ("embed_tokens", "lm_head", "head.lm_head", "head.weight")
_TABLES = ("relative.weight",)


def build_optimizer(model: nn.Module, config: OptimConfig, width_ratio: float = 1.0) -> torch.optim.Optimizer:
    """Build the optimizer ``config.name`` over all parameters of ``model`` that learn.

    ``width_ratio`` is muP's; see `groups_of`.

    Raises:
        ConfigError: the name is unknown.
    """
    groups = groups_of(model, config, width_ratio)
    optimizer = OPTIMIZERS[config.name](groups, config, getattr(model, "shape", None))
    return optimizer if config.ema is None else with_average(optimizer, config.ema)


def groups_of(model: nn.Module, config: OptimConfig, width_ratio: float = 1.0) -> list[ParameterGroup]:
    """Return the parameters by decay and rate. See `parameter_groups`."""
    decoupled = config.name not in ("adam", "sgd")
    return parameter_groups(model, config.weight_decay, width_ratio=width_ratio, decoupled=decoupled)


def adamw(groups: list[ParameterGroup], config: OptimConfig, shape: ModelShape | None) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), updated by one fused kernel."""
    return torch.optim.AdamW(
        torch_groups(groups),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def adamw_bf16(
    groups: list[ParameterGroup], config: OptimConfig, shape: ModelShape | None
) -> torch.optim.Optimizer:
    """AdamW on bf16 weights with stochastic rounding, no fp32 copy of them."""
    from distllm.optim.stochastic import StochasticAdamW

    return StochasticAdamW(
        torch_groups(groups),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
    )


def adam(groups: list[ParameterGroup], config: OptimConfig, shape: ModelShape | None) -> torch.optim.Adam:
    """Adam (Kingma & Ba 2015): weight decay, if any, is part of the gradient."""
    return torch.optim.Adam(
        torch_groups(groups),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def sgd(groups: list[ParameterGroup], config: OptimConfig, shape: ModelShape | None) -> Sgd:
    """Gradient descent with momentum ``beta1``."""
    return Sgd(torch_groups(groups), lr=config.lr, momentum=config.beta1)


def lion(groups: list[ParameterGroup], config: OptimConfig, shape: ModelShape | None) -> Lion:
    """Lion."""
    return Lion(torch_groups(groups), lr=config.lr, betas=(config.beta1, config.beta2))


def adafactor(groups: list[ParameterGroup], config: OptimConfig, shape: ModelShape | None) -> Adafactor:
    """Adafactor, with the learning rate as the largest relative step of a weight."""
    return Adafactor(torch_groups(groups), lr=config.lr)


def muon(groups: list[ParameterGroup], config: OptimConfig, shape: ModelShape | None) -> MuonWithAdamW:
    """Muon for the matrices inside the blocks; AdamW for embeddings, output, norms and biases."""
    split = []
    for group in groups:
        for rows, part in _split(group, shape):
            split += [{**one, "rows": rows} for one in torch_groups([part])]
    return MuonWithAdamW(
        split, lr=config.lr, momentum=config.beta1, betas=(config.beta1, config.beta2), eps=config.eps
    )


def _split(
    group: ParameterGroup, shape: ModelShape | None
) -> list[tuple[tuple[int, ...] | None, ParameterGroup]]:
    """Return the weights of a group by the rows of the matrices in them; None for what holds none."""
    parts = dict[tuple[int, ...] | None, dict[str, nn.Parameter]]()
    for name, weight in group.parameters.items():
        parts.setdefault(_rows(name, weight, shape), {})[name] = weight
    return [(rows, replace(group, parameters=held)) for rows, held in parts.items()]


def _rows(name: str, weight: nn.Parameter, shape: ModelShape | None) -> tuple[int, ...] | None:
    """Return the rows of each matrix in a weight: of queries, keys and values that are stored as one."""
    if weight.ndim < 2 or name.startswith(_NO_MATRIX) or name.endswith(_TABLES):
        return None
    matrix = name.removesuffix(".weight").rpartition(".")[2]
    rows = tuple(shape.rows_of(matrix).values()) if shape is not None else ()
    return rows or (weight.shape[-2],)


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
