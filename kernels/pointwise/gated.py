"""Gated activations: ``act(gate) * up`` with silu (SwiGLU), gelu or its tanh form (GEGLU; Shazeer 2020).

Nothing but the inputs is kept for the backward pass. The halves of one fused projection are read in
place: rows may be strided.

Shapes: N positions, I channels.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from distllm.kernels.pointwise.blocks import ELEMENTS, accumulate_type

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
_SQRT_HALF = tl.constexpr(0.7071067811865476)
_INVERSE_SQRT_TAU = tl.constexpr(0.3989422804014327)
_SQRT_2_BY_PI = tl.constexpr(0.7978845608028654)
_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def activate(x: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tuple:
    """Return the activation and its derivative; exponents are of -|x| or saturate to the right limit."""
    if ACTIVATION == "silu":
        gate = 1.0 / (1.0 + tl.exp2(x * (-1.0 * _LOG2E)))
        value = x * gate
        slope = gate * (1.0 + x * (1.0 - gate))
    elif ACTIVATION == "gelu":
        cumulative = 0.5 * (1.0 + tl.erf(x * _SQRT_HALF))
        value = x * cumulative
        slope = cumulative + x * tl.exp2(x * x * (-0.5 * _LOG2E)) * _INVERSE_SQRT_TAU
    else:
        inner = (x + x * x * x * 0.044715) * _SQRT_2_BY_PI
        tanh = 1.0 - 2.0 / (tl.exp2(inner * (2.0 * _LOG2E)) + 1.0)
        value = 0.5 * x * (1.0 + tanh)
        inner_slope = (1.0 + x * x * (3.0 * 0.044715)) * _SQRT_2_BY_PI
        slope = 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner_slope
    return value, slope


@triton.jit
def gated_forward_kernel(
    GATE: tl.tensor, UP: tl.tensor, Y: tl.tensor, gate_stride: int, up_stride: int, channels: int,
    ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
) -> None:  # fmt: skip
    """Write one block of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < channels
    value, _ = activate(tl.load(GATE + row * gate_stride + column, mask=mask, other=0.0).to(ACC), ACTIVATION)
    up = tl.load(UP + row * up_stride + column, mask=mask, other=0.0).to(ACC)
    tl.store(Y + row * channels + column, (value * up).to(Y.dtype.element_ty), mask=mask)


@triton.jit
def gated_backward_kernel(
    GATE: tl.tensor, UP: tl.tensor, DY: tl.tensor, DGATE: tl.tensor, DUP: tl.tensor, gate_stride: int,
    up_stride: int, dy_stride: int, channels: int, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr,
) -> None:  # fmt: skip
    """Write both gradients of one block of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < channels
    value, slope = activate(
        tl.load(GATE + row * gate_stride + column, mask=mask, other=0.0).to(ACC), ACTIVATION
    )
    up = tl.load(UP + row * up_stride + column, mask=mask, other=0.0).to(ACC)
    dy = tl.load(DY + row * dy_stride + column, mask=mask, other=0.0).to(ACC)
    tl.store(DGATE + row * channels + column, (dy * up * slope).to(DGATE.dtype.element_ty), mask=mask)
    tl.store(DUP + row * channels + column, (dy * value).to(DUP.dtype.element_ty), mask=mask)


def launch_gated(gate_NI: Tensor, up_NI: Tensor, activation: str) -> Tensor:
    """Return ``act(gate) * up``."""
    rows, channels = gate_NI.shape
    y_NI = gate_NI.new_empty(gate_NI.shape)
    if y_NI.numel():
        gated_forward_kernel[(rows, triton.cdiv(channels, ELEMENTS))](
            gate_NI, up_NI, y_NI, gate_NI.stride(0), up_NI.stride(0), channels, ACTIVATION=activation,
            BLOCK=ELEMENTS, ACC=accumulate_type(gate_NI.dtype), num_warps=4,
        )  # fmt: skip
    return y_NI


def launch_gated_backward(
    dy_NI: Tensor, gate_NI: Tensor, up_NI: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """Return dgate_NI and dup_NI."""
    rows, channels = gate_NI.shape
    dgate_NI, dup_NI = gate_NI.new_empty(gate_NI.shape), up_NI.new_empty(up_NI.shape)
    if dgate_NI.numel():
        gated_backward_kernel[(rows, triton.cdiv(channels, ELEMENTS))](
            gate_NI, up_NI, dy_NI, dgate_NI, dup_NI, gate_NI.stride(0), up_NI.stride(0), dy_NI.stride(0),
            channels, ACTIVATION=activation, BLOCK=ELEMENTS, ACC=accumulate_type(gate_NI.dtype), num_warps=4,
        )  # fmt: skip
    return dgate_NI, dup_NI
