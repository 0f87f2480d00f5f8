"""Causal attention on a CPU, one fused call per document, as an operator the compiler leaves whole.

A mask hides what crosses a border only after it was computed; one call per document never computes
it. The borders are data, not shapes: a compiled model meets them as one opaque operator, and is
compiled once for all batches.

Shapes: B rows, T positions, H query heads, K key/value heads, D head width, E segment borders.
The borders cut the flattened B * T positions; every row start is one of them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_documents(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, borders_E: Tensor) -> Tensor:
    """Return out_BTHD; a position sees itself and what precedes it since the last border."""
    out_BTHD: Tensor = _attention(q_BTHD, k_BTKD, v_BTKD, borders_E)[0]
    return out_BTHD


@torch.library.custom_op("distllm::document_attention", mutates_args=(), device_types="cpu")
def _attention(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, borders_E: Tensor) -> tuple[Tensor, Tensor]:
    """Return out_BTHD and the log-sum-exp of the scores, lse_BTH, which the backward pass needs."""
    borders = borders_E.tolist()
    pieces = zip(*(_pieces(x, borders) for x in (q_BTHD, k_BTKD, v_BTKD)), strict=True)
    outputs = [_forward(q, k, v, is_causal=True) for q, k, v in pieces]
    out_BTHD = _join([out for out, _ in outputs], q_BTHD.shape)
    return out_BTHD, _join([lse for _, lse in outputs], q_BTHD.shape[:3])


@torch.library.custom_op("distllm::document_attention_backward", mutates_args=(), device_types="cpu")
def _attention_backward(
    grad_BTHD: Tensor,
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    v_BTKD: Tensor,
    out_BTHD: Tensor,
    lse_BTH: Tensor,
    borders_E: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the queries, keys and values."""
    borders = borders_E.tolist()
    tensors = (grad_BTHD, q_BTHD, k_BTKD, v_BTKD, out_BTHD, lse_BTH)
    pieces = zip(*(_pieces(x, borders) for x in tensors), strict=True)
    grads = [_backward(*piece, 0.0, True) for piece in pieces]
    grad_q, grad_k, grad_v = zip(*grads, strict=True)
    return _join(grad_q, q_BTHD.shape), _join(grad_k, k_BTKD.shape), _join(grad_v, v_BTKD.shape)


def _pieces(x_BTH: Tensor, borders: list[int]) -> list[Tensor]:
    """View ``x_BTH…`` as tensors (rows, heads, positions, …), one per segment.

    Without a border inside any row, the whole batch is one piece.
    """
    if len(borders) == x_BTH.shape[0] + 1:
        return [x_BTH.transpose(1, 2)]
    x_NH = x_BTH.flatten(0, 1)
    return [x_NH[start:end].transpose(0, 1)[None] for start, end in pairwise(borders)]


def _join(pieces: Any, shape: torch.Size) -> Tensor:
    """Undo `_pieces` into one new contiguous tensor."""
    return torch.cat([piece.transpose(1, 2).flatten(0, 1) for piece in pieces]).view(shape)


@_attention.register_fake
def _(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, borders_E: Tensor) -> tuple[Tensor, Tensor]:
    accumulate = torch.float64 if q_BTHD.dtype == torch.float64 else torch.float32
    return q_BTHD.new_empty(q_BTHD.shape), q_BTHD.new_empty(q_BTHD.shape[:3], dtype=accumulate)


@_attention_backward.register_fake
def _(
    grad_BTHD: Tensor,
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    v_BTKD: Tensor,
    out_BTHD: Tensor,
    lse_BTH: Tensor,
    borders_E: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return q_BTHD.new_empty(q_BTHD.shape), k_BTKD.new_empty(k_BTKD.shape), v_BTKD.new_empty(v_BTKD.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, grad_BTHD: Tensor, _grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    q_BTHD, k_BTKD, v_BTKD, borders_E, out_BTHD, lse_BTH = ctx.saved_tensors
    grads = _attention_backward(grad_BTHD, q_BTHD, k_BTKD, v_BTKD, out_BTHD, lse_BTH, borders_E)
    return (*grads, None)


_attention.register_autograd(_differentiate, setup_context=_save)
