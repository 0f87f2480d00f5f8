"""Causal attention that never crosses a document, and the choice of how to compute it.

What attention must know about a batch's documents is worked out once per forward pass
(`plan_attention`) and handed to every layer.

Shapes: B rows, T positions, H query heads, K key/value heads, D head width, N = B * T positions of
the flattened batch, E segment borders in it, S positions in the key/value cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distllm.ops.compiled import anything_compiled
from distllm.ops.document_attention import attend_documents

Backend = Literal["causal", "documents", "masked"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend's name, and why it was taken."""

    name: Backend
    reason: str


@dataclass(frozen=True)
class AttentionPlan:
    """Which keys each query of a batch sees.

    Attributes:
        backend: how attention is computed.
        borders_E: for ``documents``: the first flattened position of each segment, then N.
        visible_B1TT: for ``masked``: True where a query sees a key.
    """

    backend: Backend
    borders_E: Tensor | None = None
    visible_B1TT: Tensor | None = None


def choose_attention(device: torch.device, *, segmented: bool) -> Choice:
    """Choose how to compute attention on ``device`` for batches with or without segments."""
    if not segmented:
        return Choice("causal", "no document borders are given: torch's fused causal attention")
    if device.type == "cpu":
        return Choice(
            "documents",
            "on a CPU each document is attended to on its own, which skips the work a mask would hide",
        )
    return Choice("masked", f"fused attention with a mask: no border need be read back from {device.type}")


def plan_attention(segments_BT: Tensor | None, device: torch.device) -> AttentionPlan:
    """Prepare attention for one batch; ``segments_BT`` never decreases along a row."""
    backend = choose_attention(device, segmented=segments_BT is not None).name
    if segments_BT is None:
        return AttentionPlan(backend)
    if backend == "documents":
        return AttentionPlan(backend, borders_E=_borders(segments_BT))
    visible_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    return AttentionPlan(backend, visible_B1TT=visible_BTT.tril()[:, None])


def attend(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, plan: AttentionPlan) -> Tensor:
    """Return the causal attention out_BTHD of a batch, K dividing H."""
    if plan.borders_E is not None:
        return attend_documents(q_BTHD, k_BTKD, v_BTKD, plan.borders_E)
    return _sdpa(q_BTHD, k_BTKD, v_BTKD, plan.visible_B1TT, is_causal=plan.visible_B1TT is None)


def attend_cached(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> Tensor:
    """Return the attention of the last T of S positions to all S that came before or with them."""
    length, total = q_BTHD.shape[1], k_BSKD.shape[1]
    if length in (1, total):
        return _sdpa(q_BTHD, k_BSKD, v_BSKD, None, is_causal=length > 1)
    every_TS = torch.ones(length, total, dtype=torch.bool, device=q_BTHD.device)
    return _sdpa(q_BTHD, k_BSKD, v_BSKD, every_TS.tril(total - length), is_causal=False)


def _sdpa(
    q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, visible: Tensor | None, *, is_causal: bool
) -> Tensor:
    q_BHTD, k_BKSD, v_BKSD = (x.transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKD))
    grouped = q_BHTD.shape[1] != k_BKSD.shape[1]
    out_BHTD = F.scaled_dot_product_attention(
        q_BHTD, k_BKSD, v_BKSD, attn_mask=visible, is_causal=is_causal, enable_gqa=grouped
    )
    return out_BHTD.transpose(1, 2)


def _borders(segments_BT: Tensor) -> Tensor:
    opens_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    opens_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    starts = opens_BT.flatten().nonzero().flatten()
    borders_E = torch.cat([starts, starts.new_tensor([segments_BT.numel()])])
    if anything_compiled():
        # Otherwise every new number of documents would compile the model again.
        torch._dynamo.mark_dynamic(borders_E, 0)
    return borders_E
