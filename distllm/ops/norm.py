"""Normalisation of each position.

Shapes: B rows, T positions, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distllm.ops.backend import triton_serves

_TRITON_ROW_BYTES = 16384  # a position is held in registers


def rms_norm(x_BTC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """Scale each position to unit root-mean-square, then by ``weight_C`` (Zhang & Sennrich 2019).

    torch computes the mean of bf16 inputs in fp32, and is fused by the compiler.
    """
    if triton_serves(x_BTC) and _fits(x_BTC):
        from distllm.kernels.pointwise import op

        return op.rms_norm(x_BTC, weight_C, eps)[0]
    return F.rms_norm(x_BTC, weight_C.shape, weight_C, eps)


def layer_norm(x_BTC: Tensor, weight_C: Tensor, bias_C: Tensor | None, eps: float) -> Tensor:
    """Bring each position to zero mean and unit variance, then scale and shift it (Ba et al. 2016)."""
    if triton_serves(x_BTC) and _fits(x_BTC):
        from distllm.kernels.pointwise import op

        return op.layer_norm(x_BTC, weight_C, bias_C, eps)[0]
    return F.layer_norm(x_BTC, weight_C.shape, weight_C, bias_C, eps)


def _fits(x_BTC: Tensor) -> bool:
    return x_BTC.shape[-1] * x_BTC.element_size() <= _TRITON_ROW_BYTES
