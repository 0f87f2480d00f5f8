"""From a configuration to an optimizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from distllm.config.schema import OptimConfig
from distllm.optim.groups import parameter_groups, torch_groups
from distllm.registry import Registry

Builder = Callable[[nn.Module, OptimConfig], torch.optim.Optimizer]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimizer ``config.name`` over all parameters of ``model``.

    Raises:
        ConfigError: the name is unknown.
    """
    return OPTIMIZERS[config.name](model, config)


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), updated by one fused kernel."""
    return torch.optim.AdamW(
        torch_groups(parameter_groups(model, config.weight_decay)),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


OPTIMIZERS: Registry[Builder] = Registry("optimizer", "optim.name", {"adamw": adamw})
