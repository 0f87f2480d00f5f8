"""Attention as torch operators: `attention`, with its checks, fake tensors and gradient.

Shapes: B rows, T queries, S keys, H query heads, K key/value heads, D head width, E document borders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distllm.kernels import refuse
from distllm.kernels.attention.launch import (
    Features,
    accumulate,
    launch_backward,
    launch_forward,
    sink_gradient,
)
from distllm.kernels.attention.tiles import HEAD_DIMS

_NAME = "attention"
_MAX_ROW_STRIDE = 2**24  # offsets inside a tile of 128 rows are 32-bit


@dataclass(frozen=True)
class Packed:
    """Documents packed into one row.

    Attributes:
        query_borders_E: int32, the first query of each document, then the number of queries.
        key_borders_E: the same for the keys; both have as many documents.
        max_queries: at least the length of the longest document; a larger bound starts empty programs.
        max_keys: the same for the keys.
    """

    query_borders_E: Tensor
    key_borders_E: Tensor
    max_queries: int
    max_keys: int


def attention(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    causal: bool = True,
    window: int = 0,
    softcap: float = 0.0,
    scale: float | None = None,
    sinks_H: Tensor | None = None,
    slopes_H: Tensor | None = None,
    packed: Packed | None = None,
) -> tuple[Tensor, Tensor]:
    """Return out_BTHD and the fp32 log-sum-exp of the scores, lse_BHT; both are differentiable.

    The features are those of `distllm.kernels.attention.reference.attention`. The last axis of q, k and v is
    contiguous; the others may be strided. Slopes get no gradient.

    Raises:
        ValueError: an argument is refused, with its name.
    """
    rows, columns = q_BTHD.shape[1], k_BSKD.shape[1]
    packing: tuple[Tensor | None, Tensor | None, int, int] = (None, None, rows, columns)
    if packed is not None:
        packing = (packed.query_borders_E, packed.key_borders_E, packed.max_queries, packed.max_keys)
    resolved = q_BTHD.shape[-1] ** -0.5 if scale is None else scale
    out_BTHD, lse_BHT = attention_forward(
        q_BTHD, k_BSKD, v_BSKD, sinks_H, slopes_H, *packing, causal, window, softcap, resolved
    )
    return out_BTHD, lse_BHT


@torch.library.custom_op("distllm_kernels::attention", mutates_args=())
def attention_forward(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    sinks_H: Tensor | None,
    slopes_H: Tensor | None,
    query_borders_E: Tensor | None,
    key_borders_E: Tensor | None,
    max_queries: int,
    max_keys: int,
    causal: bool,
    window: int,
    softcap: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return out_BTHD and lse_BHT. The positional form of `attention`."""
    features = Features(max_queries, max_keys, causal, window, softcap, scale)
    borders = (query_borders_E, key_borders_E)
    _check(q_BTHD, k_BSKD, v_BSKD, sinks_H, slopes_H, borders, features)
    return launch_forward(q_BTHD, k_BSKD, v_BSKD, borders, sinks_H, slopes_H, features)


@torch.library.custom_op("distllm_kernels::attention_backward", mutates_args=())
def attention_backward(
    grad_BTHD: Tensor,
    grad_lse_BHT: Tensor,
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    out_BTHD: Tensor,
    lse_BHT: Tensor,
    slopes_H: Tensor | None,
    query_borders_E: Tensor | None,
    key_borders_E: Tensor | None,
    max_queries: int,
    max_keys: int,
    causal: bool,
    window: int,
    softcap: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dq_BTHD, dk_BSKD, dv_BSKD and delta_BHT = rowsum(grad * out) - grad_lse."""
    features = Features(max_queries, max_keys, causal, window, softcap, scale)
    if grad_BTHD.stride(-1) != 1:
        grad_BTHD = grad_BTHD.contiguous()
    return launch_backward(
        (grad_BTHD, grad_lse_BHT.contiguous()), q_BTHD, k_BSKD, v_BSKD, (out_BTHD, lse_BHT), (query_borders_E,
        key_borders_E), slopes_H, features,
    )  # fmt: skip


@attention_forward.register_fake
def _(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, *_rest: Any) -> tuple[Tensor, Tensor]:
    batch, rows, heads = q_BTHD.shape[:3]
    return q_BTHD.new_empty(q_BTHD.shape), q_BTHD.new_empty(
        (batch, heads, rows), dtype=accumulate(q_BTHD.dtype)
    )


@attention_backward.register_fake
def _(
    grad_BTHD: Tensor,
    grad_lse_BHT: Tensor,
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    out_BTHD: Tensor,
    lse_BHT: Tensor,
    *_rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq_BTHD, dk_BSKD, dv_BSKD = (x.new_empty(x.shape) for x in (q_BTHD, k_BSKD, v_BSKD))
    return dq_BTHD, dk_BSKD, dv_BSKD, torch.empty_like(lse_BHT)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q_BTHD, k_BSKD, v_BSKD, sinks_H, slopes_H, query_borders_E, key_borders_E, *features = inputs
    ctx.save_for_backward(q_BTHD, k_BSKD, v_BSKD, sinks_H, slopes_H, query_borders_E, key_borders_E, *output)
    ctx.features = features


def _differentiate(ctx: Any, grad_BTHD: Tensor, grad_lse_BHT: Tensor) -> tuple[Tensor | None, ...]:
    q_BTHD, k_BSKD, v_BSKD, sinks_H, slopes_H, query_borders_E, key_borders_E, out_BTHD, lse_BHT = (
        ctx.saved_tensors
    )
    dq_BTHD, dk_BSKD, dv_BSKD, delta_BHT = attention_backward(
        grad_BTHD, grad_lse_BHT, q_BTHD, k_BSKD, v_BSKD, out_BTHD, lse_BHT, slopes_H, query_borders_E,
        key_borders_E, *ctx.features,
    )  # fmt: skip
    dsinks_H = None if sinks_H is None else sink_gradient(sinks_H, lse_BHT, delta_BHT)
    return (dq_BTHD, dk_BSKD, dv_BSKD, dsinks_H, *[None] * 9)


attention_forward.register_autograd(_differentiate, setup_context=_save)


def _check(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    sinks_H: Tensor | None,
    slopes_H: Tensor | None,
    borders: tuple[Tensor | None, Tensor | None],
    features: Features,
) -> None:
    refuse.dtype(_NAME, q=q_BTHD, k=k_BSKD, v=v_BSKD)
    query_borders_E, key_borders_E = borders
    refuse.device(
        _NAME, q=q_BTHD, k=k_BSKD, v=v_BSKD, sinks=sinks_H, slopes=slopes_H, query_borders=query_borders_E,
        key_borders=key_borders_E,
    )  # fmt: skip
    refuse.shape(_NAME, "q", q_BTHD, (None, None, None, None))
    batch, rows, heads, head_dim = q_BTHD.shape
    if head_dim not in HEAD_DIMS and (q_BTHD.device.type == "cuda" or not 16 <= head_dim <= 256):
        raise ValueError(
            f"{_NAME}: the head size is {head_dim}; the kernel has {', '.join(map(str, HEAD_DIMS))}"
        )
    refuse.shape(_NAME, "k", k_BSKD, (batch, None, None, head_dim))
    refuse.shape(_NAME, "v", v_BSKD, tuple(k_BSKD.shape))
    refuse.contiguous_channels(_NAME, q=q_BTHD, k=k_BSKD, v=v_BSKD)
    for name, tensor in (("q", q_BTHD), ("k", k_BSKD), ("v", v_BSKD)):
        if tensor.stride(1) >= _MAX_ROW_STRIDE:
            raise ValueError(
                f"{_NAME}: the rows of {name} are {tensor.stride(1)} elements apart; the limit is 2**24"
            )
    if heads % max(k_BSKD.shape[2], 1):
        raise ValueError(
            f"{_NAME}: {heads} query heads cannot share {k_BSKD.shape[2]} key/value heads evenly"
        )
    for name, per_head in (("sinks", sinks_H), ("slopes", slopes_H)):
        if per_head is not None:
            refuse.shape(_NAME, name, per_head, (heads,))
    if features.window < 0:
        raise ValueError(
            f"{_NAME}: window is {features.window}; it is a number of positions, or 0 for no limit"
        )
    if features.softcap < 0:
        raise ValueError(f"{_NAME}: softcap is {features.softcap}; it is positive, or 0 for none")
    _check_borders(batch, (rows, k_BSKD.shape[1]), borders, (features.max_queries, features.max_keys))


def _check_borders(
    batch: int,
    totals: tuple[int, int],
    borders: tuple[Tensor | None, Tensor | None],
    longest: tuple[int, int],
) -> None:
    query_borders_E, key_borders_E = borders
    if query_borders_E is None and key_borders_E is None:
        return
    if query_borders_E is None or key_borders_E is None or len(query_borders_E) != len(key_borders_E):
        raise ValueError(f"{_NAME}: query_borders and key_borders must name the same documents")
    if batch != 1:
        raise ValueError(f"{_NAME}: packed documents are one row, but q has {batch}; flatten the rows")
    refuse.borders(_NAME, "query_borders", query_borders_E, totals[0], longest[0])
    refuse.borders(_NAME, "key_borders", key_borders_E, totals[1], longest[1])
