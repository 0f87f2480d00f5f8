"""Attention that never crosses a document, and the choice of how to compute it.

The facts about a batch's documents are computed once per forward pass (`plan_attention`) and given
to every layer; a layer's own settings are its `Pattern`.

Shapes: B rows, T positions, S keys, N sources, H query heads, K key/value heads, G = H / K heads that
share keys, D head width, P pieces of the flattened batch, R = 2 T - 1 distances.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from distllm.config.attention import Name
from distllm.ops.backend import serve, serving
from distllm.ops.compiled import anything_compiled
from distllm.ops.document_attention import biased_documents, fused_documents
from distllm.ops.gpu_attention import flex_attend, packed_rows
from distllm.ops.pieces import cross_pieces, self_pieces
from distllm.ops.relative import alibi, along_diagonals

_BY_BORDERS = frozenset[Name]({"triton", "fa4", "fa3", "flash"})
_BY_MASK = frozenset[Name]({"sdpa", "source", "flex"})


@dataclass(frozen=True, slots=True)
class Pattern:
    """The settings of a layer's attention.

    Attributes:
        causal: a query sees keys at its own position or earlier.
        window: a query sees keys less than this far away; 0 sees all.
        scale: factor of the scores; None means D ** -0.5.
        softcap: scores are squashed to ± this by tanh; 0 leaves them.
    """

    causal: bool = True
    window: int = 0
    scale: float | None = None
    softcap: float = 0.0


CAUSAL = Pattern()


@dataclass(frozen=True)
class AttentionPlan:
    """Which keys each query of a batch may see, before a layer's pattern hides more.

    A plan holds what the backends of this process need; without documents it is empty.

    Attributes:
        device: the kind of device it was made for.
        documents: whether a row may hold more than one.
        cross: whether the keys are another sequence's.
        pieces_P4: what attends to what (see `distllm.ops.pieces`).
        borders_E: the first flattened position of each document, then their number.
        visible_B1TS: True where a query and a key share a document.
    """

    device: str
    documents: bool = False
    cross: bool = False
    pieces_P4: Tensor | None = None
    borders_E: Tensor | None = None
    visible_B1TS: Tensor | None = None


def plan_attention(
    segments_BT: Tensor | None, device: torch.device, source_segments_BS: Tensor | None = None
) -> AttentionPlan:
    """Prepare attention for one batch.

    Args:
        segments_BT: the document of each query, never decreasing along a row. None: a row is one.
        device: where attention is computed.
        source_segments_BS: for attention to another sequence: its segments, never decreasing; a
            query sees those of its own number. None: queries attend to their own sequence.
    """
    if segments_BT is None:
        return AttentionPlan(device.type)
    cross = source_segments_BS is not None
    names = serving()
    pieces_P4 = borders_E = visible_B1TS = None
    if "documents" in names and device.type == "cpu":
        if source_segments_BS is None:
            pieces_P4 = self_pieces(segments_BT)
        else:
            pieces_P4 = cross_pieces(segments_BT, source_segments_BS)
        if anything_compiled():
            # Otherwise every new number of documents would compile the model again.
            torch._dynamo.mark_dynamic(pieces_P4, 0)
        return AttentionPlan(device.type, True, cross, pieces_P4=pieces_P4)
    if names & _BY_BORDERS and not cross:
        starts_P = self_pieces(segments_BT)[:, 0]
        total = starts_P.new_tensor([segments_BT.numel()])
        borders_E = torch.cat([starts_P, total]).to(torch.int32)
    if names & _BY_MASK - {"source"} or cross:
        keys_BS = segments_BT if source_segments_BS is None else source_segments_BS
        visible_B1TS = (segments_BT[:, :, None] == keys_BS[:, None, :])[:, None]
    return AttentionPlan(device.type, True, cross, None, borders_E, visible_B1TS)


def attend(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    plan: AttentionPlan,
    pattern: Pattern = CAUSAL,
    bias_HR: Tensor | None = None,
    slopes_H: Tensor | None = None,
) -> Tensor:
    """Return the attention out_BTHD of a batch, K dividing H.

    Args:
        q_BTHD: queries.
        k_BSKD: keys.
        v_BSKD: values.
        plan: what shares a document.
        pattern: what the layer computes.
        bias_HR: added to the scores by distance; the queries' own sequence only.
        slopes_H: taken from the scores per position of distance (ALiBi), instead of a bias.
    """
    cross = plan.cross or q_BTHD.shape[1] != k_BSKD.shape[1]
    name = serve(
        plan.device,
        q_BTHD.dtype,
        q_BTHD.shape[-1],
        "documents" if plan.documents else None,
        "cross" if cross else None,
        "grouped" if q_BTHD.shape[2] != k_BSKD.shape[2] else None,
        "window" if pattern.window else None,
        "softcap" if pattern.softcap else None,
        "bias" if bias_HR is not None else None,
        "alibi" if slopes_H is not None else None,
    )
    if name == "triton":
        return _triton(q_BTHD, k_BSKD, v_BSKD, plan.borders_E, pattern, slopes_H)
    if slopes_H is not None:
        bias_HR = alibi(slopes_H, k_BSKD.shape[1])
    if name == "documents":
        return _documents(q_BTHD, k_BSKD, v_BSKD, plan.pieces_P4, pattern, bias_HR)
    if name in ("fa4", "fa3", "flash") and (plan.documents or pattern.window):
        return packed_rows(
            q_BTHD, k_BSKD, v_BSKD, plan.borders_E, pattern.causal, pattern.window, pattern.scale
        )
    if name == "flex":
        return flex_attend(
            q_BTHD, k_BSKD, v_BSKD, plan.visible_B1TS, bias_HR, causal=pattern.causal, window=pattern.window,
            softcap=pattern.softcap, scale=pattern.scale,
        )  # fmt: skip
    with _only(name):
        return _masked(q_BTHD, k_BSKD, v_BSKD, plan.visible_B1TS, pattern, bias_HR)


def _only(name: Name) -> AbstractContextManager[None]:
    """Restrict torch to the chosen implementation; torch raises an error if that one cannot compute."""
    if name == "cudnn":
        return sdpa_kernel(SDPBackend.CUDNN_ATTENTION)
    if name in ("fa4", "fa3", "flash"):
        return sdpa_kernel(SDPBackend.FLASH_ATTENTION)
    return nullcontext()


def _documents(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    pieces_P4: Tensor | None,
    pattern: Pattern,
    bias_HR: Tensor | None,
) -> Tensor:
    assert pieces_P4 is not None
    constants = (pattern.causal, pattern.window, pattern.scale or q_BTHD.shape[-1] ** -0.5)
    out_BTHD: Tensor
    if bias_HR is None and not pattern.softcap:
        out_BTHD = fused_documents(q_BTHD, k_BSKD, v_BSKD, pieces_P4, *constants)[0]
    else:
        bias_HR = q_BTHD.new_empty(q_BTHD.shape[2], 0) if bias_HR is None else bias_HR
        out_BTHD = biased_documents(q_BTHD, k_BSKD, v_BSKD, bias_HR, pieces_P4, *constants, pattern.softcap)[
            0
        ]
    return out_BTHD


def _triton(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    borders_E: Tensor | None,
    pattern: Pattern,
    slopes_H: Tensor | None,
) -> Tensor:
    from distllm.kernels.attention.op import Packed, attention

    length, packed = q_BTHD.shape[1], None
    inputs = [q_BTHD, k_BSKD, v_BSKD]
    if borders_E is not None:
        packed = Packed(borders_E, borders_E, length, length)  # no document is longer than a row
        inputs = [x.flatten(0, 1)[None] for x in inputs]
    out_BTHD, _ = attention(
        *inputs, causal=pattern.causal, window=pattern.window, softcap=pattern.softcap, scale=pattern.scale,
        slopes_H=slopes_H, packed=packed,
    )  # fmt: skip
    return out_BTHD.view(q_BTHD.shape)


def cached_mask(
    like_BTC: Tensor,
    total: int,
    window: int = 0,
    bias_HR: Tensor | None = None,
    slopes_H: Tensor | None = None,
    starts_B: Tensor | None = None,
) -> Tensor | None:
    """Return what the last T of S positions see of them, for `attend_cached`: the same for all layers.

    Args:
        like_BTC: of the T positions; its device and dtype count.
        total: S.
        window: a position sees those less than this far away; 0 sees all.
        bias_HR: added to the scores by distance.
        slopes_H: taken from the scores per position of distance (ALiBi), instead of a bias.
        starts_B: the first position of each row that holds anything; rows end together.
    """
    length, device = like_BTC.shape[1], like_BTC.device
    if slopes_H is not None:
        bias_HR = alibi(slopes_H, total)
    visible_B1TS = None
    if starts_B is not None:
        place_S = torch.arange(total, device=device)
        visible_B1TS = (place_S >= starts_B[:, None])[:, None, None]
        own_TS = place_S == place_S[total - length :, None]
        visible_B1TS = visible_B1TS | own_TS  # empty places see themselves, so that no row is all hidden
    return _mask(length, total, visible_B1TS, Pattern(window=window), bias_HR, device, like_BTC.dtype)


def attend_cached(
    q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, pattern: Pattern = CAUSAL, mask: Tensor | None = None
) -> Tensor:
    """Return the attention of the last T of S positions to what `cached_mask` lets them see."""
    length, group = q_BTHD.shape[1], q_BTHD.shape[2] // k_BSKD.shape[2]
    alike = mask is None or mask.ndim == 2 or mask.shape[-3] == 1
    if length == 1 and group > 1 and alike:
        # Heads that share keys stand as queries: the keys are read once for all of them.
        q_BGKD = q_BTHD.view(len(q_BTHD), -1, group, q_BTHD.shape[-1]).transpose(1, 2)
        out_BGKD = _sdpa(q_BGKD, k_BSKD, v_BSKD, mask, pattern, is_causal=False)
        return out_BGKD.transpose(1, 2).reshape(q_BTHD.shape)
    return _sdpa(q_BTHD, k_BSKD, v_BSKD, mask, pattern, is_causal=mask is None and length > 1)


def attend_source(
    q_BTHD: Tensor, k_NSKD: Tensor, v_NSKD: Tensor, pattern: Pattern, visible_N11S: Tensor | None
) -> Tensor:
    """Return the attention of B rows to N sources, B / N rows one after another to each of them."""
    folded = q_BTHD.reshape(len(k_NSKD), -1, *q_BTHD.shape[2:])
    return _sdpa(folded, k_NSKD, v_NSKD, visible_N11S, pattern, is_causal=False).reshape(q_BTHD.shape)


def _masked(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    visible_B1TS: Tensor | None,
    pattern: Pattern,
    bias_HR: Tensor | None,
) -> Tensor:
    """Attend with a mask for everything that is hidden; the last query is at the last key."""
    length, total = q_BTHD.shape[1], k_BSKD.shape[1]
    mask = _mask(length, total, visible_B1TS, pattern, bias_HR, q_BTHD.device, q_BTHD.dtype)
    is_causal = mask is None and pattern.causal and length > 1
    return _sdpa(q_BTHD, k_BSKD, v_BSKD, mask, pattern, is_causal=is_causal)


def _mask(
    length: int,
    total: int,
    visible_B1TS: Tensor | None,
    pattern: Pattern,
    bias_HR: Tensor | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor | None:
    """Return what hides keys as booleans, or with a bias as numbers to add; None: at most what is ahead."""
    shift = length - total if pattern.causal else 0
    plain = visible_B1TS is None and bias_HR is None and not pattern.window
    if plain and (not pattern.causal or length in (1, total)):
        return None
    query_T1 = torch.arange(length, device=device)[:, None]
    distance_TS = torch.arange(total, device=device) + shift - query_T1
    if pattern.causal and length > 1:
        seen_TS = distance_TS <= 0
        visible_B1TS = seen_TS if visible_B1TS is None else visible_B1TS & seen_TS
    if pattern.window:
        near_TS = distance_TS.abs() < pattern.window
        visible_B1TS = near_TS if visible_B1TS is None else visible_B1TS & near_TS
    mask = visible_B1TS
    if bias_HR is not None:
        mask = along_diagonals(bias_HR, length, total, shift).to(dtype)
        if visible_B1TS is not None:
            mask = mask.masked_fill(~visible_B1TS, -torch.inf)
    return mask


def _sdpa(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    mask: Tensor | None,
    pattern: Pattern,
    *,
    is_causal: bool,
) -> Tensor:
    q_BHTD, k_BKSD, v_BKSD = (x.transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKD))
    if pattern.softcap:
        return _capped(q_BHTD, k_BKSD, v_BKSD, mask, pattern, is_causal=is_causal).transpose(1, 2)
    grouped = q_BHTD.shape[1] != k_BKSD.shape[1]
    out_BHTD = F.scaled_dot_product_attention(
        q_BHTD, k_BKSD, v_BKSD, attn_mask=mask, is_causal=is_causal, enable_gqa=grouped, scale=pattern.scale
    )
    return out_BHTD.transpose(1, 2)


def _capped(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    mask: Tensor | None,
    pattern: Pattern,
    *,
    is_causal: bool,
) -> Tensor:
    """Attention with squashed scores, which no fused function of torch offers on every device."""
    group = q_BHTD.shape[1] // k_BKSD.shape[1]
    k_BHSD, v_BHSD = (x.repeat_interleave(group, dim=1) for x in (k_BKSD, v_BKSD))
    scale = pattern.scale or q_BHTD.shape[-1] ** -0.5
    scores_BHTS = (q_BHTD @ k_BHSD.transpose(-1, -2) * scale).to(
        torch.promote_types(q_BHTD.dtype, torch.float32)
    )
    scores_BHTS = pattern.softcap * (scores_BHTS / pattern.softcap).tanh()
    if is_causal:
        length = scores_BHTS.shape[-1]
        mask = torch.ones(length, length, dtype=torch.bool, device=q_BHTD.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores_BHTS = scores_BHTS.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores_BHTS = scores_BHTS + mask
    return scores_BHTS.softmax(dim=-1).to(v_BHSD.dtype) @ v_BHSD
