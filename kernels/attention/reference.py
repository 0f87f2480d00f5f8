"""The reference of the attention kernels: every feature by its definition, one document at a time.

Shapes: B rows, T queries, S keys, H query heads, K key/value heads, D head width, E document borders.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


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
) -> tuple[Tensor, Tensor]:
    """Return out_BTHD and the log-sum-exp of the scores, lse_BHT, the sink included.

    Query i stands at key position i + S - T. It sees the keys at or before its position (``causal``)
    and fewer than ``window`` positions away (0: no limit); a query that sees nothing returns zeros
    and -inf. Scores are ``scale * q·k`` (default D^-½), bent by ``softcap * tanh(score / softcap)``, less
    ``slope * distance``.
    """
    num_queries, heads, head_dim = q_BTHD.shape[1:]
    num_keys, group = k_BSKD.shape[1], heads // k_BSKD.shape[2]
    k_BSHD, v_BSHD = (x.repeat_interleave(group, dim=2) for x in (k_BSKD, v_BSKD))
    scores_BHTS = torch.einsum("bthd,bshd->bhts", q_BTHD, k_BSHD) * (scale or head_dim**-0.5)
    if softcap:
        scores_BHTS = softcap * torch.tanh(scores_BHTS / softcap)
    place_T1 = torch.arange(num_queries, device=q_BTHD.device)[:, None] + num_keys - num_queries
    distance_TS = place_T1 - torch.arange(num_keys, device=q_BTHD.device)
    if slopes_H is not None:
        scores_BHTS = scores_BHTS - slopes_H[:, None, None].to(scores_BHTS) * distance_TS.abs()
    visible_TS = torch.ones_like(distance_TS, dtype=torch.bool)
    if causal:
        visible_TS &= distance_TS >= 0
    if window:
        visible_TS &= distance_TS.abs() < window
    scores_BHTS = scores_BHTS.masked_fill(~visible_TS, -torch.inf)
    sees_T1 = visible_TS.any(dim=1, keepdim=True)
    if sinks_H is not None:
        sink_BHT1 = sinks_H[:, None, None].to(scores_BHTS).expand(*scores_BHTS.shape[:3], 1)
        lse_BHT = torch.cat([scores_BHTS, sink_BHT1], dim=-1).logsumexp(dim=-1)
    else:
        # the double where keeps the gradient of rows that see nothing free of NaN
        lse_BHT = scores_BHTS.where(sees_T1, 0.0).logsumexp(dim=-1).where(sees_T1[:, 0], -torch.inf)
    base_BHT1 = lse_BHT[..., None].where(sees_T1, 0.0)
    weights_BHTS = torch.exp(scores_BHTS - base_BHT1)
    return torch.einsum("bhts,bshd->bthd", weights_BHTS, v_BSHD), lse_BHT


def packed_attention(
    q_1NHD: Tensor,
    k_1MKD: Tensor,
    v_1MKD: Tensor,
    query_borders_E: Tensor,
    key_borders_E: Tensor,
    **features: object,
) -> tuple[Tensor, Tensor]:
    """Return out_1NHD and lse_1HN of documents packed into one row, each attended to on its own."""
    outs, lses = [], []
    borders = zip(pairwise(query_borders_E.tolist()), pairwise(key_borders_E.tolist()), strict=True)
    for (begin, end), (key_begin, key_end) in borders:
        keys = slice(key_begin, key_end)
        out, lse = attention(q_1NHD[:, begin:end], k_1MKD[:, keys], v_1MKD[:, keys], **features)  # type: ignore[arg-type]  # the features are attention's own
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs, dim=1), torch.cat(lses, dim=2)
