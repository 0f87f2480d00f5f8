"""Rotary positions, alone or after an RMSNorm over each head (QK-norm), in one pass.

Channel d is paired with d + D/2, as in Llama. Without a weight there is no norm, and the gradient is
the rotation by the opposite angle.

Shapes: N positions, H heads, D head width, d = D / 2 pairs, P programs.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from distllm.kernels.device import INTERPRETER, architecture
from distllm.kernels.pointwise.blocks import accumulate, accumulate_type

_HEADS = 16  # of a program: at D = 128, 8 elements of each half per thread, one 128-bit access in bf16
_BACKWARD_PROGRAMS = 528


@triton.jit
def rotary_kernel(
    X: tl.tensor, COS: tl.tensor, SIN: tl.tensor, WEIGHT: tl.tensor, RSTD: tl.tensor, Y: tl.tensor,
    x_strides: tl.tuple, heads: int, eps: float, HALF: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr,
    INVERSE: tl.constexpr, ACC: tl.constexpr,
) -> None:  # fmt: skip
    """Normalise (if there is a WEIGHT) and turn HEADS heads of one position; INVERSE turns back."""
    position = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, WIDTH)
    in_pair = pair < HALF
    mask = (head[:, None] < heads) & in_pair[None, :]
    first = X + position * x_strides[0] + head[:, None] * x_strides[1] + pair[None, :]
    a = tl.load(first, mask=mask, other=0.0).to(ACC)
    b = tl.load(first + HALF, mask=mask, other=0.0).to(ACC)
    if WEIGHT is not None:
        rstd = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)
        tl.store(RSTD + position * heads + head, rstd, mask=head < heads)
        a = a * rstd[:, None] * tl.load(WEIGHT + pair, mask=in_pair, other=0.0).to(ACC)[None, :]
        b = b * rstd[:, None] * tl.load(WEIGHT + HALF + pair, mask=in_pair, other=0.0).to(ACC)[None, :]
    cos = tl.load(COS + position * HALF + pair, mask=in_pair, other=0.0).to(ACC)[None, :]
    sin = tl.load(SIN + position * HALF + pair, mask=in_pair, other=0.0).to(ACC)[None, :]
    if INVERSE:
        sin = -sin
    out = Y + (position * heads + head[:, None]) * (2 * HALF) + pair[None, :]
    tl.store(out, (a * cos - b * sin).to(Y.dtype.element_ty), mask=mask)
    tl.store(out + HALF, (b * cos + a * sin).to(Y.dtype.element_ty), mask=mask)


@triton.jit
def norm_rotary_backward_kernel(
    X: tl.tensor, COS: tl.tensor, SIN: tl.tensor, WEIGHT: tl.tensor, RSTD: tl.tensor, DY: tl.tensor,
    DX: tl.tensor, DWEIGHT: tl.tensor, x_strides: tl.tuple, dy_strides: tl.tuple, positions: int, heads: int,
    HALF: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, ACC: tl.constexpr,
) -> None:  # fmt: skip
    """Write dX of HEADS heads of every P-th position, and this program's part of the weight's gradient."""
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, WIDTH)
    in_pair = pair < HALF
    mask = (head[:, None] < heads) & in_pair[None, :]
    weight_a = tl.load(WEIGHT + pair, mask=in_pair, other=0.0).to(ACC)[None, :]
    weight_b = tl.load(WEIGHT + HALF + pair, mask=in_pair, other=0.0).to(ACC)[None, :]
    dweight_a = tl.zeros([WIDTH], ACC)
    dweight_b = tl.zeros([WIDTH], ACC)
    for index in tl.range(tl.program_id(0), positions, tl.num_programs(0)):
        position = tl.cast(index, tl.int64)
        cos = tl.load(COS + position * HALF + pair, mask=in_pair, other=0.0).to(ACC)[None, :]
        sin = tl.load(SIN + position * HALF + pair, mask=in_pair, other=0.0).to(ACC)[None, :]
        grad = DY + position * dy_strides[0] + head[:, None] * dy_strides[1] + pair[None, :]
        dy_a = tl.load(grad, mask=mask, other=0.0).to(ACC)
        dy_b = tl.load(grad + HALF, mask=mask, other=0.0).to(ACC)
        turned_a = dy_a * cos + dy_b * sin
        turned_b = dy_b * cos - dy_a * sin
        rstd = tl.load(RSTD + position * heads + head, mask=head < heads, other=0.0)[:, None]
        first = X + position * x_strides[0] + head[:, None] * x_strides[1] + pair[None, :]
        normal_a = tl.load(first, mask=mask, other=0.0).to(ACC) * rstd
        normal_b = tl.load(first + HALF, mask=mask, other=0.0).to(ACC) * rstd
        dweight_a += tl.sum(turned_a * normal_a, 0)
        dweight_b += tl.sum(turned_b * normal_b, 0)
        grad_a = turned_a * weight_a
        grad_b = turned_b * weight_b
        along = ((tl.sum(grad_a * normal_a, 1) + tl.sum(grad_b * normal_b, 1)) / (2 * HALF))[:, None]
        out = DX + (position * heads + head[:, None]) * (2 * HALF) + pair[None, :]
        tl.store(out, ((grad_a - normal_a * along) * rstd).to(DX.dtype.element_ty), mask=mask)
        tl.store(out + HALF, ((grad_b - normal_b * along) * rstd).to(DX.dtype.element_ty), mask=mask)
    part = DWEIGHT + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * (2 * HALF) + pair
    tl.store(part, dweight_a, mask=in_pair)
    tl.store(part + HALF, dweight_b, mask=in_pair)


def launch_rotary(
    x_NHD: Tensor, cos_Nd: Tensor, sin_Nd: Tensor, weight_D: Tensor | None, eps: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    """Return y_NHD and rstd_NH (empty without a weight)."""
    positions, heads, head_dim = x_NHD.shape
    y_NHD = x_NHD.new_empty(x_NHD.shape)
    rstd_NH = x_NHD.new_empty(
        (positions, heads) if weight_D is not None else (0,), dtype=accumulate(x_NHD.dtype)
    )
    if y_NHD.numel():
        rotary_kernel[(positions, triton.cdiv(heads, _HEADS))](
            x_NHD, cos_Nd, sin_Nd, weight_D, rstd_NH, y_NHD, x_NHD.stride()[:2], heads, eps,
            HALF=head_dim // 2, WIDTH=triton.next_power_of_2(head_dim // 2), HEADS=_HEADS, INVERSE=inverse,
            ACC=accumulate_type(x_NHD.dtype), num_warps=4,
        )  # fmt: skip
    return y_NHD, rstd_NH


def launch_norm_rotary_backward(
    dy_NHD: Tensor, x_NHD: Tensor, cos_Nd: Tensor, sin_Nd: Tensor, weight_D: Tensor, rstd_NH: Tensor
) -> tuple[Tensor, Tensor]:
    """Return dx_NHD and dweight_D of the norm and rotation together."""
    positions, heads, head_dim = x_NHD.shape
    limit = 3 if architecture(x_NHD.device) == INTERPRETER else _BACKWARD_PROGRAMS
    grid = (max(min(limit, positions), 1), triton.cdiv(heads, _HEADS))
    dx_NHD = x_NHD.new_empty(x_NHD.shape)
    dweight_PD = x_NHD.new_empty((grid[0] * grid[1], head_dim), dtype=accumulate(x_NHD.dtype))
    norm_rotary_backward_kernel[grid](
        x_NHD, cos_Nd, sin_Nd, weight_D, rstd_NH, dy_NHD, dx_NHD, dweight_PD, x_NHD.stride()[:2],
        dy_NHD.stride()[:2], positions, heads, HALF=head_dim // 2,
        WIDTH=triton.next_power_of_2(head_dim // 2), HEADS=_HEADS, ACC=accumulate_type(x_NHD.dtype),
        num_warps=4,
    )  # fmt: skip
    return dx_NHD, dweight_PD.sum(dim=0).to(weight_D.dtype)
