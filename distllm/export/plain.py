"""Removing multipliers that no architecture of transformers has."""

from __future__ import annotations

from dataclasses import replace

import torch

from distllm.models.encoder import Encoder
from distllm.models.heads import Head, MaskedLMHead
from distllm.models.init import Model
from distllm.models.layers import Norm


@torch.no_grad()
def fold_output_multiplier(model: Model) -> None:
    """Move muP's factor of the logits into the norm before the output projection, in place.

    A model without muP, or without such a norm, is not changed.
    """
    if isinstance(model, Encoder):
        inside = isinstance(model.head, MaskedLMHead)
        norm, head = (model.head.norm, model.head.lm_head) if inside else (None, None)
    else:
        norm, head = model.decoder.norm, model.lm_head
    if model.shape.mup == 1.0 or not isinstance(norm, Norm) or not isinstance(head, Head):
        return
    for weight in norm.parameters():
        weight.mul_(head.scale)
    head.scale = 1.0
    model.shape = replace(model.shape, logit_scale=1.0)
