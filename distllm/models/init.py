"""Initial weights that depend on the seed and each parameter's name, on nothing else."""

from __future__ import annotations

import torch
from torch import nn

from distllm.config.shape import ModelShape
from distllm.models.decoder import DecoderLM
from distllm.seeds import derive_seed

_INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight")


def build_model(shape: ModelShape, seed: int, device: torch.device | str = "cpu") -> DecoderLM:
    """Build an initialised decoder in fp32 on ``device``."""
    with torch.device("meta"):
        model = DecoderLM(shape)
    model.to_empty(device=device)
    model.tie_weights()  # moving off the meta device made two parameters of one
    initialize(model, shape, seed)
    return model


@torch.no_grad()
def initialize(model: nn.Module, shape: ModelShape, seed: int) -> None:
    """Set matrices to normal noise and norms to one.

    Matrices that write to the residual stream are scaled by 1 / sqrt(2 num_layers), so that its
    variance does not grow with depth (Radford et al. 2019). Numbers are drawn on the CPU, each
    parameter from its own stream: the result depends on no rank, order or device.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.fill_(1.0)
            continue
        residual = name.endswith(_INTO_RESIDUAL)
        std = shape.init_std * ((2 * shape.num_layers) ** -0.5 if residual else 1.0)
        generator = torch.Generator().manual_seed(derive_seed(seed, "init", name))
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
