"""The references: each operation as its definition, slow, in the precision of its inputs.

Kernels and fast paths are tested against these, and these against torch's own. Feed them fp32 or
fp64; every output has the dtype of the input.

Shapes: B rows, T positions, S keys, H query heads, K key/value heads, D head width, N tokens,
C channels, I MLP width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attention(
    q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, segments_BT: Tensor | None = None, *, causal: bool = True
) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1) with grouped heads; returns out_BTHD.

    Query head h reads key/value head ``h // (H // K)`` (Ainslie et al. 2023). A query sees the keys
    of its own segment, and with ``causal`` only those at its own position or earlier.
    """
    length, num_heads, head_dim = q_BTHD.shape[1:]
    group = num_heads // k_BTKD.shape[2]
    k_BTHD = k_BTKD.repeat_interleave(group, dim=2)
    v_BTHD = v_BTKD.repeat_interleave(group, dim=2)
    scores_BHTS = torch.einsum("bthd,bshd->bhts", q_BTHD, k_BTHD) * head_dim**-0.5
    visible_BTS = torch.ones(1, length, length, dtype=torch.bool, device=q_BTHD.device)
    if causal:
        visible_BTS = visible_BTS.tril()
    if segments_BT is not None:
        visible_BTS = visible_BTS & (segments_BT[:, :, None] == segments_BT[:, None, :])
    weights_BHTS = scores_BHTS.masked_fill(~visible_BTS[:, None], -torch.inf).softmax(dim=-1)
    return torch.einsum("bhts,bshd->bthd", weights_BHTS, v_BTHD)


def rms_norm(x_BTC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x²) + eps) * weight`` over the last axis (Zhang & Sennrich 2019)."""
    return x_BTC * torch.rsqrt(x_BTC.square().mean(dim=-1, keepdim=True) + eps) * weight_C


def rope(x_BTHD: Tensor, positions_BT: Tensor, theta: float) -> Tensor:
    """Rotate pairs of channels by angles that grow with the position (Su et al. 2021).

    Channel d is paired with ``d + D/2``, and the pair turns by ``position * theta ** (-2d / D)``:
    the half-split layout of Llama in Hugging Face's code.
    """
    half = x_BTHD.shape[-1] // 2
    channel_d = torch.arange(half, dtype=x_BTHD.dtype, device=x_BTHD.device)
    angle_BT1d = positions_BT[:, :, None, None] * theta ** (-channel_d / half)
    cos_BT1d, sin_BT1d = angle_BT1d.cos(), angle_BT1d.sin()
    a_BTHd, b_BTHd = x_BTHD[..., :half], x_BTHD[..., half:]
    rotated = (a_BTHd * cos_BT1d - b_BTHd * sin_BT1d, a_BTHd * sin_BT1d + b_BTHd * cos_BT1d)
    return torch.cat(rotated, dim=-1)


def swiglu(gate_BTI: Tensor, up_BTI: Tensor) -> Tensor:
    """``gate * sigmoid(gate) * up`` (Shazeer 2020)."""
    return gate_BTI * torch.sigmoid(gate_BTI) * up_BTI


def linear_cross_entropy(
    hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, *, ignore_index: int = -100
) -> Tensor:
    """Sum over the tokens that are not ignored of ``-log softmax(hidden @ weightᵀ)[target]``."""
    counted_N = targets_N != ignore_index
    logits_NV = hidden_NC[counted_N] @ weight_VC.T
    target_N1 = targets_N[counted_N].long()[:, None]
    return (logits_NV.logsumexp(dim=-1) - logits_NV.gather(1, target_N1)[:, 0]).sum()
