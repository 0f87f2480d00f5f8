"""Attention of packed rows by torch's kernels for GPUs: FlashAttention by borders, and flex_attention.

Shapes: B rows, T positions, S keys, H query heads, K key/value heads, D head width, N = B T flattened
positions, E document borders, R = 2 S - 1 distances.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from distllm.ops.compiled import anything_compiled


def packed_rows(
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    v_BTKD: Tensor,
    borders_E: Tensor | None,
    causal: bool,
    window: int,
    scale: float | None,
) -> Tensor:
    """Return out_BTHD by the FlashAttention in force, each document on its own, without a mask.

    Args:
        q_BTHD: queries.
        k_BTKD: keys.
        v_BTKD: values.
        borders_E: int32, the first flattened position of each document, then their number; None: of rows.
        causal: a query sees keys at its own position or earlier.
        window: a query sees keys less than this far away; 0 sees all.
        scale: factor of the scores; None means D ** -0.5.
    """
    from torch.nn.attention.varlen import varlen_attn

    rows, length = q_BTHD.shape[:2]
    if borders_E is None:
        borders_E = torch.arange(rows + 1, device=q_BTHD.device, dtype=torch.int32) * length
    behind = window - 1 if window else -1
    q_NHD, k_NKD, v_NKD = (x.flatten(0, 1) for x in (q_BTHD, k_BTKD, v_BTKD))
    out_NHD = varlen_attn(
        q_NHD, k_NKD, v_NKD, borders_E, borders_E, length, length, scale=scale,
        window_size=(behind, 0 if causal else behind), enable_gqa=q_NHD.shape[1] != k_NKD.shape[1],
    )  # fmt: skip
    assert isinstance(out_NHD, Tensor)
    return out_NHD.view(q_BTHD.shape)


def flex_attend(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    visible_B1TS: Tensor | None,
    bias_HR: Tensor | None,
    *,
    causal: bool,
    window: int,
    softcap: float,
    scale: float | None,
) -> Tensor:
    """Return out_BTHD by flex_attention, which writes no score to memory and skips hidden blocks.

    The last query is at the last key if ``causal``, as in `distllm.ops.attention`; scores are capped first,
    and the bias by distance is added then.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    (rows, length), total, width = q_BTHD.shape[:2], k_BSKD.shape[1], q_BTHD.shape[-1]
    shift = length - total if causal else 0
    zero = 0 if bias_HR is None else bias_HR.shape[1] // 2

    def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = key + shift - query
        seen = distance <= 0 if causal else distance == distance
        if window:
            seen = seen & (distance.abs() < window)
        return seen if visible_B1TS is None else seen & visible_B1TS[row, 0, query, key]

    def score(value: Tensor, _row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if softcap:
            value = softcap * torch.tanh(value / softcap)
        return value if bias_HR is None else value + bias_HR[head, zero + key + shift - query]

    blocks = create_block_mask(sees, rows, None, length, total, device=q_BTHD.device)
    out_BHTD: Tensor = _flex(q_BTHD.device.type)(
        q_BTHD.transpose(1, 2), k_BSKD.transpose(1, 2), v_BSKD.transpose(1, 2), score_mod=score,
        block_mask=blocks, scale=scale or width**-0.5, enable_gqa=q_BTHD.shape[2] != k_BSKD.shape[2],
    )  # fmt: skip
    return out_BHTD.transpose(1, 2)


@cache
def _flex(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    if device == "cuda" and not (anything_compiled() and torch.compiler.is_compiling()):
        return torch.compile(flex_attention)  # uncompiled, it writes all scores to memory
    return flex_attention
