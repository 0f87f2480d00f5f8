"""Attention on a CPU, one call per document, as operators that the compiler does not break up.

With a mask, scores across document borders are computed and then hidden; with one call per document
they are never computed. `fused_documents` calls torch's fused kernel. `biased_documents` stores the scores,
for what that kernel cannot do: a bias by distance with a gradient, and soft-capped scores.

Shapes: B rows, T positions, S keys, H query heads, K key/value heads, D head width, P pieces (see
`distllm.ops.pieces`), R distances (see `distllm.ops.relative`), X = B or 1, L queries and M keys of
one piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from distllm.ops.pieces import Piece, cut, whole_rows
from distllm.ops.relative import along_diagonals, sum_diagonals

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Work:
    """One call's pieces, and how its tensors are laid out: (X, heads, positions, …)."""

    def __init__(self, q_BTHD: Tensor, k_BSKD: Tensor, pieces_P4: Tensor, causal: bool, window: int) -> None:
        (rows, length), num_keys = q_BTHD.shape[:2], k_BSKD.shape[1]
        self.whole = whole_rows(pieces_P4, rows, length, num_keys)
        listed = [[0, length, 0, num_keys]] if self.whole else pieces_P4.tolist()
        self.pieces = [piece for piece in cut(listed, causal, window) if piece.k1 > piece.k0]
        self.causal, self.window = causal, window
        # Every query and every key belongs to one piece, in order: parts need only be joined.
        self.covers = not window and len(self.pieces) == len(listed) and _tile(self.pieces, rows * num_keys)

    def spread(self, x_BTH: Tensor) -> Tensor:
        """View a tensor as (X, heads, positions, …)."""
        return x_BTH.transpose(1, 2) if self.whole else x_BTH.flatten(0, 1).transpose(0, 1)[None]

    def queries(self, x_BTH: Tensor) -> Iterator[Tensor]:
        """Yield each piece's part of a tensor of queries."""
        x_XHN = self.spread(x_BTH)
        return (x_XHN[:, :, piece.q0 : piece.q1] for piece in self.pieces)

    def keys(self, x_BSK: Tensor) -> Iterator[Tensor]:
        """Yield each piece's part of a tensor of keys."""
        x_XKN = self.spread(x_BSK)
        return (x_XKN[:, :, piece.k0 : piece.k1] for piece in self.pieces)

    def join_queries(self, parts: list[Tensor], like_BTH: Tensor) -> Tensor:
        """Return one tensor of all pieces' queries, zero where a query has no key."""
        if self.covers:
            return _join(parts, like_BTH.shape)
        total_BTH = torch.zeros_like(like_BTH, memory_format=torch.contiguous_format)
        for home, part in zip(self.queries(total_BTH), parts, strict=True):
            home.copy_(part)
        return total_BTH

    def sum_keys(self, parts: list[Tensor], like_BSK: Tensor) -> Tensor:
        """Return one tensor with the sum of all pieces' values for each key."""
        if self.covers:
            return _join(parts, like_BSK.shape)
        total_BSK = torch.zeros_like(like_BSK, memory_format=torch.contiguous_format)
        for home, part in zip(self.keys(total_BSK), parts, strict=True):
            home += part
        return total_BSK


def _tile(pieces: list[Piece], num_keys: int) -> bool:
    """Whether the pieces' keys follow one another from the first to the last; whole rows do."""
    if len(pieces) == 1:
        return True
    ends = [0, *(piece.k1 for piece in pieces)]
    return ends[-1] == num_keys and all(piece.k0 == end for piece, end in zip(pieces, ends, strict=False))


def _join(parts: list[Tensor], shape: torch.Size) -> Tensor:
    return torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts]).view(shape)


def _mask(piece: Piece, work: _Work, like: Tensor) -> dict[str, Any]:
    """Return the fused kernel's arguments that hide keys."""
    square = piece.shift == 0 and piece.q1 - piece.q0 == piece.k1 - piece.k0
    if square and work.causal and (not work.window or piece.q1 - piece.q0 <= work.window):
        return {"is_causal": True}
    visible_LM = piece.visible(work.causal, work.window, like.device)
    if visible_LM is None:
        return {"is_causal": False}
    mask_LM = torch.zeros(visible_LM.shape, dtype=like.dtype).masked_fill_(~visible_LM, -torch.inf)
    return {"is_causal": False, "attn_mask": mask_LM}


@torch.library.custom_op("distllm::fused_documents", mutates_args=(), device_types="cpu")
def fused_documents(
    q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, pieces_P4: Tensor, causal: bool, window: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Return out_BTHD and the log-sum-exp of the scores, lse_BTH, which the backward pass needs."""
    work = _Work(q_BTHD, k_BSKD, pieces_P4, causal, window)
    parts = zip(work.pieces, work.queries(q_BTHD), work.keys(k_BSKD), work.keys(v_BSKD), strict=True)
    done = [_forward(q, k, v, scale=scale, **_mask(piece, work, q)) for piece, q, k, v in parts]
    lse_BTH = q_BTHD.new_empty(q_BTHD.shape[:3], dtype=_precise(q_BTHD))
    return (
        work.join_queries([out for out, _ in done], q_BTHD),
        work.join_queries([lse for _, lse in done], lse_BTH),
    )


@torch.library.custom_op("distllm::fused_documents_backward", mutates_args=(), device_types="cpu")
def _fused_backward(
    grad_BTHD: Tensor,
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    out_BTHD: Tensor,
    lse_BTH: Tensor,
    pieces_P4: Tensor,
    causal: bool,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the queries, keys and values."""
    work = _Work(q_BTHD, k_BSKD, pieces_P4, causal, window)
    queries = (work.queries(x) for x in (grad_BTHD, q_BTHD, out_BTHD, lse_BTH))
    parts = zip(work.pieces, *queries, work.keys(k_BSKD), work.keys(v_BSKD), strict=True)
    grads = []
    for piece, grad, q, out, lse, k, v in parts:
        mask = _mask(piece, work, q)
        is_causal = mask.pop("is_causal")
        grads.append(_backward(grad, q, k, v, out, lse, 0.0, is_causal, scale=scale, **mask))
    return (
        work.join_queries([grad[0] for grad in grads], q_BTHD),
        work.sum_keys([grad[1] for grad in grads], k_BSKD),
        work.sum_keys([grad[2] for grad in grads], v_BSKD),
    )


@torch.library.custom_op("distllm::biased_documents", mutates_args=(), device_types="cpu")
def biased_documents(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    bias_HR: Tensor,
    pieces_P4: Tensor,
    causal: bool,
    window: int,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """Return out_BTHD and lse_BTH; ``bias_HR`` of no distances and ``softcap`` 0 mean none."""
    work = _Work(q_BTHD, k_BSKD, pieces_P4, causal, window)
    outs, sums = [], []
    for piece, q, k, v in zip(
        work.pieces, work.queries(q_BTHD), work.keys(k_BSKD), work.keys(v_BSKD), strict=True
    ):
        scores, _ = _scores(piece, work, q, k, bias_HR, scale, softcap)
        lse = scores.logsumexp(dim=-1)
        outs.append((scores - lse[..., None]).exp_().to(v.dtype) @ _repeated(v, q))
        sums.append(lse)
    lse_BTH = q_BTHD.new_empty(q_BTHD.shape[:3], dtype=_precise(q_BTHD))
    return work.join_queries(outs, q_BTHD), work.join_queries(sums, lse_BTH)


@torch.library.custom_op("distllm::biased_documents_backward", mutates_args=(), device_types="cpu")
def _biased_backward(
    grad_BTHD: Tensor,
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    bias_HR: Tensor,
    out_BTHD: Tensor,
    lse_BTH: Tensor,
    pieces_P4: Tensor,
    causal: bool,
    window: int,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the queries, keys, values and biases."""
    work = _Work(q_BTHD, k_BSKD, pieces_P4, causal, window)
    grad_bias_HR = torch.zeros_like(bias_HR, dtype=_precise(q_BTHD))
    queries = (work.queries(x) for x in (grad_BTHD, q_BTHD, out_BTHD, lse_BTH))
    grads: list[tuple[Tensor, Tensor, Tensor]] = []
    for piece, grad, q, out, lse, k, v in zip(
        work.pieces, *queries, work.keys(k_BSKD), work.keys(v_BSKD), strict=True
    ):
        scores, slope = _scores(piece, work, q, k, bias_HR, scale, softcap)
        weights = scores.sub_(lse[..., None]).exp_()
        grad_weights = (grad @ _repeated(v, q).transpose(-1, -2)).to(weights.dtype)
        inner = (grad * out).sum(dim=-1, keepdim=True, dtype=weights.dtype)
        grad_scores = grad_weights.sub_(inner).mul_(weights)
        if bias_HR.numel():
            sum_diagonals(grad_bias_HR, grad_scores.sum(dim=0), piece.shift)
        if slope is not None:
            grad_scores *= slope
        grad_scores = grad_scores.mul_(scale).to(q.dtype)
        grads.append(
            (
                grad_scores @ _repeated(k, q),
                _regrouped(grad_scores.transpose(-1, -2) @ q, k),
                _regrouped(weights.to(q.dtype).transpose(-1, -2) @ grad, v),
            )
        )
    return (
        work.join_queries([grad[0] for grad in grads], q_BTHD),
        work.sum_keys([grad[1] for grad in grads], k_BSKD),
        work.sum_keys([grad[2] for grad in grads], v_BSKD),
        grad_bias_HR.to(bias_HR.dtype),
    )


def _scores(
    piece: Piece, work: _Work, q_XHLD: Tensor, k_XKMD: Tensor, bias_HR: Tensor, scale: float, softcap: float
) -> tuple[Tensor, Tensor | None]:
    """Return scores_XHLM, hidden ones minus infinity, and the soft-cap's slope_XHLM if there is one."""
    scores = (q_XHLD @ _repeated(k_XKMD, q_XHLD).transpose(-1, -2)).to(_precise(q_XHLD)).mul_(scale)
    slope = None
    if softcap:
        squashed = (scores / softcap).tanh_()
        scores, slope = squashed * softcap, 1.0 - squashed.square()
    if bias_HR.numel():
        scores += along_diagonals(bias_HR, scores.shape[-2], scores.shape[-1], piece.shift)
    visible_LM = piece.visible(work.causal, work.window, scores.device)
    if visible_LM is not None:
        scores.masked_fill_(~visible_LM, -torch.inf)
    return scores, slope


def _repeated(x_XKMD: Tensor, q_XHLD: Tensor) -> Tensor:
    """Give each query head its key/value head."""
    group = q_XHLD.shape[1] // x_XKMD.shape[1]
    return x_XKMD if group == 1 else x_XKMD.repeat_interleave(group, dim=1)


def _regrouped(grad_XHMD: Tensor, x_XKMD: Tensor) -> Tensor:
    """Add up the gradients of heads that share a key/value head."""
    rows, heads, keys, width = x_XKMD.shape
    return grad_XHMD.reshape(rows, heads, -1, keys, width).sum(dim=2)


def _precise(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@fused_documents.register_fake
def _(q_BTHD: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q_BTHD.new_empty(q_BTHD.shape), q_BTHD.new_empty(q_BTHD.shape[:3], dtype=_precise(q_BTHD))


@biased_documents.register_fake
def _(q_BTHD: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q_BTHD.new_empty(q_BTHD.shape), q_BTHD.new_empty(q_BTHD.shape[:3], dtype=_precise(q_BTHD))


@_fused_backward.register_fake
def _(_grad: Tensor, *qkv_and_more: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in qkv_and_more[:3])


@_biased_backward.register_fake
def _(_grad: Tensor, *qkvb_and_more: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in qkvb_and_more[:4])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    ctx.save_for_backward(*tensors[:-1], *output, tensors[-1])
    ctx.constants = inputs[len(tensors) :]


def _differentiate_fused(ctx: Any, grad_BTHD: Tensor, _grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    return (*_fused_backward(grad_BTHD, *ctx.saved_tensors, *ctx.constants), None, None, None, None)


def _differentiate_biased(ctx: Any, grad_BTHD: Tensor, _grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    return (*_biased_backward(grad_BTHD, *ctx.saved_tensors, *ctx.constants), None, None, None, None, None)


fused_documents.register_autograd(_differentiate_fused, setup_context=_save)
biased_documents.register_autograd(_differentiate_biased, setup_context=_save)
