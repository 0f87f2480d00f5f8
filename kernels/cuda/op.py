"""The CUDA kernels as torch operators, with fake tensors and gradients.

Shapes: N rows, C channels, P blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from distllm.kernels.cuda.build import Target, load

_BACKWARD_BLOCKS = 528  # four per multiprocessor of an H100


def adamw(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    seed: int,
) -> None:
    """Update bf16 weights and their fp32 moments in place; weights are rounded stochastically.

    The random numbers are named by (seed, step, place in the list, element), so that the same call gives the
    same bits on every rank and after every resume. See `distllm.kernels.cuda.reference.adamw`.

    Raises:
        RuntimeError: an argument is refused, with its name.
    """
    operators(_target(weights[0])).adamw(
        list(weights), list(grads), list(means), list(squares), lr, *betas, eps, weight_decay, step, seed
    )


def rms_norm(x_NC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """Return the RMSNorm of bf16 rows, differentiable.

    Raises:
        RuntimeError: an argument is refused, with its name.
    """
    y_NC: Tensor = operators(_target(x_NC)).rms_norm(x_NC, weight_C, eps)[0]
    return y_NC


def _target(tensor: Tensor) -> Target:
    return "cuda" if tensor.device.type == "cuda" else "cpu"


@cache
def operators(target: Target) -> Any:
    """Load the operators for a kind of device and give them their fake tensors and gradients."""
    load(target)
    torch.library.register_fake("distllm_cuda::rms_norm", _fake_norm)
    torch.library.register_fake("distllm_cuda::rms_norm_backward", _fake_norm_backward)
    torch.library.register_fake("distllm_cuda::adamw", lambda *_: None)
    torch.library.register_autograd("distllm_cuda::rms_norm", _differentiate, setup_context=_save)
    return torch.ops.distllm_cuda


def _fake_norm(x_NC: Tensor, weight_C: Tensor, _eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_NC), x_NC.new_empty(x_NC.shape[:1], dtype=torch.float32)


def _fake_norm_backward(
    _dy: Tensor, x_NC: Tensor, weight_C: Tensor, _rstd: Tensor, parts: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_NC), x_NC.new_empty((parts, x_NC.shape[1]), dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:2], output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, dy_NC: Tensor, _drstd: Any) -> tuple[Tensor, Tensor, None]:
    x_NC, weight_C, rstd_N = ctx.saved_tensors
    parts = max(min(_BACKWARD_BLOCKS, x_NC.shape[0]), 1) if x_NC.device.type == "cuda" else 3
    dx_NC, dweight_PC = torch.ops.distllm_cuda.rms_norm_backward(
        dy_NC.contiguous(), x_NC, weight_C, rstd_N, parts
    )
    return dx_NC, dweight_PC.sum(dim=0).to(weight_C.dtype), None
