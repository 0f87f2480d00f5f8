"""From a configuration to an optimizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from distllm.config.schema_optim import OptimConfig
from distllm.optim.ema import with_average
from distllm.optim.groups import ParameterGroup, parameter_groups, torch_groups
from distllm.optim.rules import Adafactor, Lion, MuonWithAdamW, Sgd
from distllm.registry import Registry

Builder = Callable[[nn.Module, OptimConfig], torch.optim.Optimizer]
_NO_MATRIX = ("embed", "lm_head")


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimizer ``config.name`` over all parameters of ``model`` that learn.

    Raises:
        ConfigError: the name is unknown.
    """
    optimizer = OPTIMIZERS[config.name](model, config)
    return optimizer if config.ema is None else with_average(optimizer, config.ema)


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), updated by one fused kernel."""
    return torch.optim.AdamW(
        torch_groups(parameter_groups(model, config.weight_decay)),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def adamw_bf16(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW on bf16 weights with stochastic rounding, no fp32 copy of them."""
    from distllm.optim.stochastic import StochasticAdamW

    return StochasticAdamW(
        torch_groups(parameter_groups(model, config.weight_decay)),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
    )


def adam(model: nn.Module, config: OptimConfig) -> torch.optim.Adam:
    """Adam (Kingma & Ba 2015): weight decay, if any, is part of the gradient."""
    return torch.optim.Adam(
        torch_groups(parameter_groups(model, config.weight_decay)),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def sgd(model: nn.Module, config: OptimConfig) -> Sgd:
    """Gradient descent with momentum ``beta1``."""
    groups = torch_groups(parameter_groups(model, config.weight_decay))
    return Sgd(groups, lr=config.lr, momentum=config.beta1)


def lion(model: nn.Module, config: OptimConfig) -> Lion:
    """Lion."""
    groups = torch_groups(parameter_groups(model, config.weight_decay))
    return Lion(groups, lr=config.lr, betas=(config.beta1, config.beta2))


def adafactor(model: nn.Module, config: OptimConfig) -> Adafactor:
    """Adafactor, with the learning rate as the largest relative step of a weight."""
    return Adafactor(torch_groups(parameter_groups(model, config.weight_decay)), lr=config.lr)


def muon(model: nn.Module, config: OptimConfig) -> MuonWithAdamW:
    """Muon for the matrices inside the blocks; AdamW for embeddings, output, norms and biases."""
    groups = []
    for group in parameter_groups(model, config.weight_decay):
        for matrices, part in _split(group):
            groups += [{**one, "matrices": matrices} for one in torch_groups([part]) if one["params"]]
    return MuonWithAdamW(
        groups, lr=config.lr, momentum=config.beta1, betas=(config.beta1, config.beta2), eps=config.eps
    )


def _split(group: ParameterGroup) -> list[tuple[bool, ParameterGroup]]:
    """Return the weights of a group that Muon updates, and the others."""
    parts: dict[bool, dict[str, nn.Parameter]] = {True: {}, False: {}}
    for name, weight in group.parameters.items():
        inside = weight.ndim == 2 and not any(word in name for word in _NO_MATRIX)
        parts[inside][name] = weight
    return [(kind, ParameterGroup(group.name, group.weight_decay, held)) for kind, held in parts.items()]


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
