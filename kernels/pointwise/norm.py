"""RMSNorm and LayerNorm, with the residual addition before them in the same pass over memory.

Shapes: N positions, C channels, P programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from distllm.kernels.device import INTERPRETER, architecture
from distllm.kernels.pointwise.blocks import accumulate, accumulate_type, row_warps

_ROW_BYTES = 16384  # a position is held in registers; more of it spills in the backward pass
_BACKWARD_PROGRAMS = (
    528  # four per multiprocessor of an H100; each sums its own part of the weight's gradient
)


@triton.jit
def norm_forward_kernel(
    X: tl.tensor, RESIDUAL: tl.tensor, WEIGHT: tl.tensor, BIAS: tl.tensor, SUM: tl.tensor, Y: tl.tensor,
    MEAN: tl.tensor, RSTD: tl.tensor, x_stride: int, residual_stride: int, channels: int, eps: float,
    CENTERED: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
) -> None:  # fmt: skip
    """Normalise one position; the sum with the residual is rounded first, to what is stored."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < channels
    x = tl.load(X + row * x_stride + column, mask=mask, other=0.0).to(ACC)
    if RESIDUAL is not None:
        x += tl.load(RESIDUAL + row * residual_stride + column, mask=mask, other=0.0).to(ACC)
        rounded = x.to(SUM.dtype.element_ty)
        tl.store(SUM + row * channels + column, rounded, mask=mask)
        x = rounded.to(ACC)
    if CENTERED:
        mean = tl.sum(x, 0) / channels
        tl.store(MEAN + row, mean)
        x = tl.where(mask, x - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(x * x, 0) / channels + eps)
    tl.store(RSTD + row, rstd)
    y = x * rstd * tl.load(WEIGHT + column, mask=mask, other=0.0).to(ACC)
    if BIAS is not None:
        y += tl.load(BIAS + column, mask=mask, other=0.0).to(ACC)
    tl.store(Y + row * channels + column, y.to(Y.dtype.element_ty), mask=mask)


@triton.jit
def norm_backward_kernel(
    X: tl.tensor, WEIGHT: tl.tensor, MEAN: tl.tensor, RSTD: tl.tensor, DY: tl.tensor, DSUM: tl.tensor,
    DX: tl.tensor, DWEIGHT: tl.tensor, DBIAS: tl.tensor, x_stride: int, dy_stride: int, rows: int,
    channels: int, CENTERED: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
) -> None:  # fmt: skip
    """Write dX of every P-th position, and this program's part of the weight's and the bias's gradient.

    With n the normalised input and g = dY * weight: dX = rstd (g - n mean(g n)), and centred
    rstd (g - n mean(g n) - mean(g)).
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    mask = column < channels
    weight = tl.load(WEIGHT + column, mask=mask, other=0.0).to(ACC)
    dweight = tl.zeros([BLOCK], ACC)
    dbias = tl.zeros([BLOCK], ACC)
    for row_index in tl.range(program, rows, programs):
        row = tl.cast(row_index, tl.int64)
        x = tl.load(X + row * x_stride + column, mask=mask, other=0.0).to(ACC)
        dy = tl.load(DY + row * dy_stride + column, mask=mask, other=0.0).to(ACC)
        rstd = tl.load(RSTD + row)
        if CENTERED:
            x = tl.where(mask, x - tl.load(MEAN + row), 0.0)
        normal = x * rstd
        dweight += dy * normal
        if DBIAS is not None:
            dbias += dy
        grad = dy * weight
        dx = grad - normal * (tl.sum(grad * normal, 0) / channels)
        if CENTERED:
            dx -= tl.sum(grad, 0) / channels
        dx = dx * rstd
        if DSUM is not None:
            dx += tl.load(DSUM + row * channels + column, mask=mask, other=0.0).to(ACC)
        tl.store(DX + row * channels + column, dx.to(DX.dtype.element_ty), mask=mask)
    part = program.to(tl.int64) * channels + column
    tl.store(DWEIGHT + part, dweight, mask=mask)
    if DBIAS is not None:
        tl.store(DBIAS + part, dbias, mask=mask)


def max_channels(dtype: torch.dtype) -> int:
    """Return how many channels a program can hold: 8192 of 16 bits, 4096 in fp32."""
    return _ROW_BYTES // min(dtype.itemsize, 4)


def launch_norm(
    x_NC: Tensor,
    residual_NC: Tensor | None,
    weight_C: Tensor,
    bias_C: Tensor | None,
    eps: float,
    centered: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y_NC, x + residual (empty without one), mean_N (empty unless centred) and rstd_N."""
    rows, channels = x_NC.shape
    dtype = accumulate(x_NC.dtype)
    y_NC = x_NC.new_empty(x_NC.shape)
    sum_NC = x_NC.new_empty(x_NC.shape if residual_NC is not None else (0,))
    mean_N = x_NC.new_empty((rows,) if centered else (0,), dtype=dtype)
    rstd_N = x_NC.new_empty((rows,), dtype=dtype)
    block = triton.next_power_of_2(channels)
    if rows:
        norm_forward_kernel[(rows,)](
            x_NC, residual_NC, weight_C, bias_C, sum_NC, y_NC, mean_N, rstd_N, x_NC.stride(0),
            0 if residual_NC is None else residual_NC.stride(0), channels, eps, CENTERED=centered,
            BLOCK=block, ACC=accumulate_type(x_NC.dtype), num_warps=row_warps(block),
        )  # fmt: skip
    return y_NC, sum_NC, mean_N, rstd_N


def launch_norm_backward(
    grads: tuple[Tensor, Tensor | None],
    x_NC: Tensor,
    weight_C: Tensor,
    statistics: tuple[Tensor, Tensor],
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dx_NC (of the sum, if there was a residual), dweight_C and dbias_C (empty without a bias).

    ``grads`` are those of y_NC and of the sum; ``statistics`` mean_N and rstd_N.
    """
    (dy_NC, dsum_NC), (mean_N, rstd_N) = grads, statistics
    rows, channels = x_NC.shape
    dtype = accumulate(x_NC.dtype)
    programs = 3 if architecture(x_NC.device) == INTERPRETER else _BACKWARD_PROGRAMS
    programs = max(min(programs, rows), 1)
    dx_NC = x_NC.new_empty(x_NC.shape)
    dweight_PC = x_NC.new_empty((programs, channels), dtype=dtype)
    dbias_PC = x_NC.new_empty((programs, channels), dtype=dtype) if has_bias else None
    block = triton.next_power_of_2(channels)
    norm_backward_kernel[(programs,)](
        x_NC, weight_C, mean_N, rstd_N, dy_NC, dsum_NC, dx_NC, dweight_PC, dbias_PC, x_NC.stride(0),
        dy_NC.stride(0), rows, channels, CENTERED=bool(mean_N.numel()), BLOCK=block,
        ACC=accumulate_type(x_NC.dtype), num_warps=row_warps(block),
    )  # fmt: skip
    dweight_C = dweight_PC.sum(dim=0).to(weight_C.dtype)
    dbias_C = torch.empty_like(weight_C[:0]) if dbias_PC is None else dbias_PC.sum(dim=0).to(weight_C.dtype)
    return dx_NC, dweight_C, dbias_C
