"""The pointwise kernels as torch operators, with their checks, fake tensors and gradients.

Shapes: N positions or tokens, C channels, H heads, D head width, d = D / 2 pairs, I MLP width,
V vocabulary; a leading ``...`` stands for any axes, which are flattened to N.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distllm.kernels import refuse
from distllm.kernels.pointwise import cross_entropy, gated, norm, rotary
from distllm.kernels.pointwise.blocks import accumulate


def rms_norm(
    x: Tensor, weight_C: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the RMSNorm of x + residual, and that sum (x itself without a residual), in the shape of ``x``.

    Raises:
        ValueError: an argument is refused, with its name.
    """
    return _normalised(x, residual, weight_C, None, eps, centered=False)


def layer_norm(
    x: Tensor, weight_C: Tensor, bias_C: Tensor | None, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the LayerNorm of x + residual, and that sum (x itself without a residual), shaped like ``x``.

    Raises:
        ValueError: an argument is refused, with its name.
    """
    return _normalised(x, residual, weight_C, bias_C, eps, centered=True)


def rope(x: Tensor, cos: Tensor, sin: Tensor, weight_D: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """Turn the channel pairs (d, d + D/2) of ``x`` [..., H, D]; with a weight, after an RMSNorm over D.

    ``cos`` and ``sin`` [..., D/2] (or [..., 1, D/2]) belong to the positions; they get no gradient.

    Raises:
        ValueError: an argument is refused, with its name.
    """
    half = x.shape[-1] // 2
    x_NHD = x.reshape(-1, *x.shape[-2:])
    y_NHD: Tensor = rotary_op(x_NHD, cos.reshape(-1, half), sin.reshape(-1, half), weight_D, eps, False)[0]
    return y_NHD.view(x.shape)


def gated_activation(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    """Return ``act(gate) * up``; ``activation`` is silu (SwiGLU), gelu or gelu_tanh (GEGLU).

    Raises:
        ValueError: an argument is refused, with its name.
    """
    channels = gate.shape[-1]
    y_NI: Tensor = gated_op(gate.reshape(-1, channels), up.reshape(-1, channels), activation)
    return y_NI.view(gate.shape)


def linear_cross_entropy(
    hidden_NC: Tensor,
    weight_VC: Tensor,
    targets_N: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> Tensor:
    """Return loss_N of each token in fp32: the cross-entropy of ``hidden @ weightᵀ``, 0 where ignored.

    ``label_smoothing`` spreads that part of the target evenly over the vocabulary; ``z_loss`` times the
    squared log-sum-exp is added (PaLM); ``softcap * tanh(logit / softcap)`` bends the logits (Gemma 2).

    Raises:
        ValueError: an argument is refused, with its name.
    """
    loss_N: Tensor = cross_entropy_op(
        hidden_NC, weight_VC, targets_N.long(), ignore_index, label_smoothing, z_loss, softcap
    )[0]
    return loss_N


def _normalised(
    x: Tensor, residual: Tensor | None, weight_C: Tensor, bias_C: Tensor | None, eps: float, *, centered: bool
) -> tuple[Tensor, Tensor]:
    channels = x.shape[-1]
    residual_NC = None if residual is None else residual.reshape(-1, channels)
    y_NC, sum_NC, _, _ = norm_op(x.reshape(-1, channels), residual_NC, weight_C, bias_C, eps, centered)
    return y_NC.view(x.shape), x if residual is None else sum_NC.view(x.shape)


@torch.library.custom_op("distllm_kernels::norm", mutates_args=())
def norm_op(
    x_NC: Tensor,
    residual_NC: Tensor | None,
    weight_C: Tensor,
    bias_C: Tensor | None,
    eps: float,
    centered: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y_NC, x + residual, mean_N and rstd_N; what does not apply is empty."""
    name = "layer_norm" if centered else "rms_norm"
    refuse.shape(name, "x", x_NC, (None, None))
    refuse.dtype(name, x=x_NC, residual=residual_NC)
    refuse.device(name, x=x_NC, residual=residual_NC, weight=weight_C, bias=bias_C)
    limit = norm.max_channels(x_NC.dtype)
    if x_NC.shape[1] > limit:
        raise ValueError(
            f"{name}: x has {x_NC.shape[1]} channels; the kernel holds up to {limit} in {x_NC.dtype}"
        )
    for label, vector in (("weight", weight_C), ("bias", bias_C)):
        if vector is not None:
            refuse.shape(name, label, vector, (x_NC.shape[1],))
    refuse.contiguous_channels(name, x=x_NC, weight=weight_C)
    if residual_NC is not None:
        refuse.shape(name, "residual", residual_NC, tuple(x_NC.shape))
        refuse.contiguous_channels(name, residual=residual_NC)
    return norm.launch_norm(x_NC, residual_NC, weight_C, bias_C, eps, centered)


@torch.library.custom_op("distllm_kernels::norm_backward", mutates_args=())
def norm_backward_op(
    dy_NC: Tensor,
    dsum_NC: Tensor | None,
    x_NC: Tensor,
    weight_C: Tensor,
    mean_N: Tensor,
    rstd_N: Tensor,
    bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dx_NC, dweight_C and dbias_C (empty without a bias)."""
    dsum_NC = None if dsum_NC is None else dsum_NC.contiguous()
    return norm.launch_norm_backward((_rows(dy_NC), dsum_NC), x_NC, weight_C, (mean_N, rstd_N), bias)


@torch.library.custom_op("distllm_kernels::rotary", mutates_args=())
def rotary_op(
    x_NHD: Tensor, cos_Nd: Tensor, sin_Nd: Tensor, weight_D: Tensor | None, eps: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    """Return y_NHD and rstd_NH (empty without a weight)."""
    refuse.dtype("rope", x=x_NHD)
    refuse.device("rope", x=x_NHD, cos=cos_Nd, sin=sin_Nd, weight=weight_D)
    refuse.shape("rope", "x", x_NHD, (None, None, None))
    positions, _, head_dim = x_NHD.shape
    if head_dim % 2 or not 2 <= head_dim <= 256:
        raise ValueError(f"rope: the head size is {head_dim}; it must be even and at most 256")
    for label, table in (("cos", cos_Nd), ("sin", sin_Nd)):
        refuse.shape("rope", label, table, (positions, head_dim // 2))
    if weight_D is not None:
        refuse.shape("rope", "weight", weight_D, (head_dim,))
    refuse.contiguous_channels("rope", x=x_NHD)
    return rotary.launch_rotary(x_NHD, cos_Nd.contiguous(), sin_Nd.contiguous(), weight_D, eps, inverse)


@torch.library.custom_op("distllm_kernels::norm_rotary_backward", mutates_args=())
def norm_rotary_backward_op(
    dy_NHD: Tensor, x_NHD: Tensor, cos_Nd: Tensor, sin_Nd: Tensor, weight_D: Tensor, rstd_NH: Tensor
) -> tuple[Tensor, Tensor]:
    """Return dx_NHD and dweight_D."""
    return rotary.launch_norm_rotary_backward(
        _rows(dy_NHD), x_NHD, cos_Nd.contiguous(), sin_Nd.contiguous(), weight_D, rstd_NH
    )


@torch.library.custom_op("distllm_kernels::gated", mutates_args=())
def gated_op(gate_NI: Tensor, up_NI: Tensor, activation: str) -> Tensor:
    """Return y_NI."""
    refuse.shape("gated_activation", "gate", gate_NI, (None, None))
    refuse.dtype("gated_activation", gate=gate_NI, up=up_NI)
    refuse.device("gated_activation", gate=gate_NI, up=up_NI)
    refuse.shape("gated_activation", "up", up_NI, tuple(gate_NI.shape))
    refuse.contiguous_channels("gated_activation", gate=gate_NI, up=up_NI)
    if activation not in gated.ACTIVATIONS:
        raise ValueError(
            f"gated_activation: activation is {activation!r}; it is one of {', '.join(gated.ACTIVATIONS)}"
        )
    return gated.launch_gated(gate_NI, up_NI, activation)


@torch.library.custom_op("distllm_kernels::gated_backward", mutates_args=())
def gated_backward_op(
    dy_NI: Tensor, gate_NI: Tensor, up_NI: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """Return dgate_NI and dup_NI."""
    return gated.launch_gated_backward(_rows(dy_NI), gate_NI, up_NI, activation)


@torch.library.custom_op("distllm_kernels::linear_cross_entropy", mutates_args=())
def cross_entropy_op(
    hidden_NC: Tensor,
    weight_VC: Tensor,
    targets_N: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss_N, peak_N and log_total_N."""
    name = "linear_cross_entropy"
    refuse.shape(name, "hidden", hidden_NC, (None, None))
    refuse.dtype(name, hidden=hidden_NC, weight=weight_VC)
    refuse.device(name, hidden=hidden_NC, weight=weight_VC, targets=targets_N)
    refuse.shape(name, "weight", weight_VC, (None, hidden_NC.shape[1]))
    refuse.shape(name, "targets", targets_N, (hidden_NC.shape[0],))
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"{name}: label_smoothing is {label_smoothing}; it must be in [0, 1)")
    for label, value in (("z_loss", z_loss), ("softcap", softcap)):
        if value < 0:
            raise ValueError(f"{name}: {label} is {value}; it is positive, or 0 for none")
    refuse.targets(name, targets_N, len(weight_VC), ignore_index)
    terms = cross_entropy.LossTerms(ignore_index, label_smoothing, z_loss, softcap)
    return cross_entropy.launch_cross_entropy(hidden_NC, weight_VC, targets_N.contiguous(), terms)


@torch.library.custom_op("distllm_kernels::linear_cross_entropy_backward", mutates_args=())
def cross_entropy_backward_op(
    grad_N: Tensor,
    hidden_NC: Tensor,
    weight_VC: Tensor,
    targets_N: Tensor,
    peak_N: Tensor,
    log_total_N: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """Return dhidden_NC and dweight_VC."""
    terms = cross_entropy.LossTerms(ignore_index, label_smoothing, z_loss, softcap)
    return cross_entropy.launch_cross_entropy_backward(
        grad_N.contiguous(), hidden_NC, weight_VC, targets_N.contiguous(), (peak_N, log_total_N), terms
    )


def _rows(x: Tensor) -> Tensor:
    """Give the channels of a gradient, which may be expanded, the stride 1."""
    return x if x.stride(-1) == 1 else x.contiguous()


@norm_op.register_fake
def _(
    x_NC: Tensor,
    residual_NC: Tensor | None,
    weight_C: Tensor,
    bias_C: Tensor | None,
    eps: float,
    centered: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, dtype = x_NC.shape[0], accumulate(x_NC.dtype)
    sum_NC = x_NC.new_empty(x_NC.shape if residual_NC is not None else (0,))
    mean_N = x_NC.new_empty((rows,) if centered else (0,), dtype=dtype)
    return x_NC.new_empty(x_NC.shape), sum_NC, mean_N, x_NC.new_empty((rows,), dtype=dtype)


@norm_backward_op.register_fake
def _(
    dy_NC: Tensor,
    dsum_NC: Tensor | None,
    x_NC: Tensor,
    weight_C: Tensor,
    mean_N: Tensor,
    rstd_N: Tensor,
    bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x_NC.new_empty(x_NC.shape),
        torch.empty_like(weight_C),
        weight_C.new_empty(weight_C.shape if bias else (0,)),
    )


@rotary_op.register_fake
def _(
    x_NHD: Tensor, cos_Nd: Tensor, sin_Nd: Tensor, weight_D: Tensor | None, *_rest: Any
) -> tuple[Tensor, Tensor]:
    size = x_NHD.shape[:2] if weight_D is not None else (0,)
    return x_NHD.new_empty(x_NHD.shape), x_NHD.new_empty(size, dtype=accumulate(x_NHD.dtype))


@norm_rotary_backward_op.register_fake
def _(
    dy_NHD: Tensor, x_NHD: Tensor, cos_Nd: Tensor, sin_Nd: Tensor, weight_D: Tensor, rstd_NH: Tensor
) -> tuple[Tensor, Tensor]:
    return x_NHD.new_empty(x_NHD.shape), torch.empty_like(weight_D)


@gated_op.register_fake
def _(gate_NI: Tensor, up_NI: Tensor, activation: str) -> Tensor:
    return gate_NI.new_empty(gate_NI.shape)


@gated_backward_op.register_fake
def _(dy_NI: Tensor, gate_NI: Tensor, up_NI: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    return gate_NI.new_empty(gate_NI.shape), up_NI.new_empty(up_NI.shape)


@cross_entropy_op.register_fake
def _(hidden_NC: Tensor, *_rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    loss_N, peak_N, log_total_N = (
        hidden_NC.new_empty(hidden_NC.shape[:1], dtype=accumulate(hidden_NC.dtype)) for _ in range(3)
    )
    return loss_N, peak_N, log_total_N


@cross_entropy_backward_op.register_fake
def _(grad_N: Tensor, hidden_NC: Tensor, weight_VC: Tensor, *_rest: Any) -> tuple[Tensor, Tensor]:
    return hidden_NC.new_empty(hidden_NC.shape), weight_VC.new_empty(weight_VC.shape)


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_NC, residual_NC, weight_C, bias_C, _, _ = inputs
    _, sum_NC, mean_N, rstd_N = output
    ctx.residual, ctx.bias = residual_NC is not None, bias_C is not None
    ctx.save_for_backward(sum_NC if ctx.residual else x_NC, weight_C, mean_N, rstd_N)
    ctx.mark_non_differentiable(mean_N, rstd_N)


def _differentiate_norm(
    ctx: Any, dy_NC: Tensor, dsum_NC: Tensor, *_statistics: Any
) -> tuple[Tensor | None, ...]:
    upstream = dsum_NC if ctx.residual else None
    dx_NC, dweight_C, dbias_C = norm_backward_op(dy_NC, upstream, *ctx.saved_tensors, ctx.bias)
    # an operator may not return one tensor for two gradients, but its formula may
    return dx_NC, dx_NC if ctx.residual else None, dweight_C, dbias_C if ctx.bias else None, None, None


def _save_rotary(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x_NHD, cos_Nd, sin_Nd, weight_D, eps, inverse = inputs
    ctx.eps, ctx.inverse, ctx.normed = eps, inverse, weight_D is not None
    ctx.save_for_backward(cos_Nd, sin_Nd, *((x_NHD, weight_D, output[1]) if ctx.normed else ()))
    ctx.mark_non_differentiable(output[1])


def _differentiate_rotary(ctx: Any, dy_NHD: Tensor, _drstd: Any) -> tuple[Tensor | None, ...]:
    cos_Nd, sin_Nd, *normed = ctx.saved_tensors
    if not ctx.normed:
        dx_NHD, _ = rotary_op(_rows(dy_NHD), cos_Nd, sin_Nd, None, ctx.eps, not ctx.inverse)
        return dx_NHD, *[None] * 5
    x_NHD, weight_D, rstd_NH = normed
    dx_NHD, dweight_D = norm_rotary_backward_op(dy_NHD, x_NHD, cos_Nd, sin_Nd, weight_D, rstd_NH)
    return dx_NHD, None, None, dweight_D, None, None


def _save_gated(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.activation = inputs[2]


def _differentiate_gated(ctx: Any, dy_NI: Tensor) -> tuple[Tensor | None, ...]:
    return *gated_backward_op(dy_NI, *ctx.saved_tensors, ctx.activation), None


def _save_cross_entropy(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:3], *output[1:])
    ctx.terms = inputs[3:]
    ctx.mark_non_differentiable(*output[1:])


def _differentiate_cross_entropy(ctx: Any, grad_N: Tensor, *_statistics: Any) -> tuple[Tensor | None, ...]:
    return *cross_entropy_backward_op(grad_N, *ctx.saved_tensors, *ctx.terms), *[None] * 5


norm_op.register_autograd(_differentiate_norm, setup_context=_save_norm)
rotary_op.register_autograd(_differentiate_rotary, setup_context=_save_rotary)
gated_op.register_autograd(_differentiate_gated, setup_context=_save_gated)
cross_entropy_op.register_autograd(_differentiate_cross_entropy, setup_context=_save_cross_entropy)
