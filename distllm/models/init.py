"""Building a model, with initial weights that depend only on the seed and each parameter's name."""

from __future__ import annotations

import torch
from torch import nn

from distllm.config.mup import std_factor
from distllm.config.shape import ModelShape
from distllm.models.decoder import DecoderLM
from distllm.models.encdec import EncoderDecoder
from distllm.models.encoder import Encoder
from distllm.models.heads import HeadName
from distllm.ops.cross_entropy import NO_TERMS, LossTerms
from distllm.seeds import derive_seed

Model = DecoderLM | Encoder | EncoderDecoder
_INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight", "mlp.down_proj")


def build_model(
    shape: ModelShape,
    seed: int,
    device: torch.device | str = "cpu",
    *,
    head: HeadName = "masked_lm",
    terms: LossTerms = NO_TERMS,
) -> Model:
    """Build an initialised model of ``shape.family`` in fp32 on ``device``.

    Args:
        shape: its dimensions.
        seed: root of the random streams of its weights.
        device: where it is built.
        head: what stands on an encoder; the other families predict tokens.
        terms: what the loss adds to the cross-entropy in training mode.
    """
    with torch.device("meta"):
        model = bare_model(shape, head=head, terms=terms)
    model.to_empty(device=device)
    model.tie_weights()  # moving off the meta device made two parameters of one
    initialize(model, shape, seed)
    return model


def bare_model(shape: ModelShape, *, head: HeadName = "masked_lm", terms: LossTerms = NO_TERMS) -> Model:
    """Build a model whose weights are not initialised. See `build_model`."""
    if shape.family == "encoder":
        return Encoder(shape, head, terms)
    return DecoderLM(shape, terms) if shape.family == "decoder" else EncoderDecoder(shape, terms)


@torch.no_grad()
def initialize(model: nn.Module, shape: ModelShape, seed: int) -> None:
    """Set matrices to normal noise, norms to one and biases to zero.

    Matrices that write to the residual stream are scaled by one over the root of the number of such
    matrices in their stack, so that its variance does not grow with depth (Radford et al. 2019);
    not where a norm follows each sum. With muP deviations depend on the width too. Numbers are drawn on
    the CPU, each parameter from its own stream: the result depends on no rank, order or device.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        std = shape.init_std * std_factor(name, parameter.ndim, shape.mup)
        if name.endswith(_INTO_RESIDUAL) and shape.norm_place != "post":
            std *= _residual_writes(name, shape) ** -0.5
        generator = torch.Generator().manual_seed(derive_seed(seed, "init", name))
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def _residual_writes(name: str, shape: ModelShape) -> int:
    """Return how many sublayers add to the residual stream of the parameter's stack."""
    if shape.family != "encoder_decoder":
        return 2 * shape.num_layers
    return 2 * shape.num_encoder_layers if name.startswith("encoder.") else 3 * shape.num_layers
