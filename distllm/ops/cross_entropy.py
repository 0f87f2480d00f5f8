"""The output projection and its cross-entropy in one, without ever holding all logits.

The logits of a chunk of tokens are turned into gradients at once and dropped, so memory is that of
one chunk plus two gradients; the projection is not computed twice. The idea is that of Liger
Kernel's fused linear cross-entropy (Hsu et al. 2024).

Shapes: N tokens, M tokens of one chunk, C channels, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distllm.data.batch import IGNORE_INDEX
from distllm.ops.backend import triton_serves

CHUNK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Terms that are added to the cross-entropy in training.

    Attributes:
        label_smoothing: share of a target's probability spread over all ids (Szegedy et al. 2016).
        z_loss: factor of the squared log of the softmax's normaliser, which keeps logits from
            drifting (Chowdhery et al. 2022).
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0


NO_TERMS = LossTerms()


def soft_cap(logits: Tensor, cap: float) -> Tensor:
    """Return ``logits`` squashed to ± ``cap`` by tanh (Gemma team 2024); 0 leaves them."""
    return cap * (logits / cap).tanh() if cap else logits


def linear_cross_entropy(
    hidden_NC: Tensor,
    weight_VC: Tensor,
    targets_N: Tensor,
    bias_V: Tensor | None = None,
    *,
    softcap: float = 0.0,
    terms: LossTerms = NO_TERMS,
) -> Tensor:
    """Return the summed cross-entropy of ``hidden_NC @ weight_VCᵀ + bias_V`` against ``targets_N``.

    The result is an fp32 scalar (fp64 for fp64 inputs); targets of ``IGNORE_INDEX`` count nothing.
    """
    if triton_serves(hidden_NC) and bias_V is None and hidden_NC.dtype == weight_VC.dtype:
        from distllm.kernels.pointwise import op

        return op.linear_cross_entropy(
            hidden_NC, weight_VC, targets_N, ignore_index=IGNORE_INDEX, label_smoothing=terms.label_smoothing,
            z_loss=terms.z_loss, softcap=softcap,
        ).sum()  # fmt: skip
    if hidden_NC.device.type == "cpu" and not torch.compiler.is_compiling():
        # Most tasks score few positions. A GPU would have to be waited for to count them.
        counted_N = (targets_N != IGNORE_INDEX).nonzero()[:, 0]
        if len(counted_N) < len(targets_N):
            hidden_NC, targets_N = hidden_NC[counted_N], targets_N[counted_N]
    learned = (hidden_NC, weight_VC) if bias_V is None else (hidden_NC, weight_VC, bias_V)
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in learned)
    loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]  # torch does not annotate it
        hidden_NC, weight_VC, bias_V, targets_N.long(), softcap, terms, needs_grad
    )
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        softcap: float,
        terms: LossTerms,
        needs_grad: bool,
    ) -> Tensor:
        precise = torch.promote_types(hidden_NC.dtype, torch.float32)
        size = min(CHUNK_TOKENS, len(targets_N)), len(weight_VC)
        logits_MV = hidden_NC.new_empty(size)  # both buffers serve all chunks
        log_probs_MV = hidden_NC.new_empty(size, dtype=precise)
        loss = torch.zeros((), dtype=precise, device=hidden_NC.device)
        grad_hidden_NC = torch.empty_like(hidden_NC)
        grad_weight_VC = torch.zeros_like(weight_VC, dtype=precise)
        grad_bias_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=precise)
        for start in range(0, len(targets_N), CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            hidden_MC, target_M1 = hidden_NC[chunk], targets_N[chunk, None]
            counted_M1 = target_M1 != IGNORE_INDEX
            target_M1 = target_M1.where(counted_M1, 0)
            logits, log_probs = logits_MV[: len(hidden_MC)], log_probs_MV[: len(hidden_MC)]
            torch.mm(hidden_MC, weight_VC.T, out=logits)
            if bias_V is not None:
                logits += bias_V
            if softcap:
                logits.copy_(soft_cap(logits, softcap))
            torch.log_softmax(logits, dim=1, dtype=precise, out=log_probs)
            loss -= log_probs.gather(1, target_M1).where(counted_M1, 0).sum()
            shift_M1 = None
            if terms != NO_TERMS:
                more, shift_M1 = _more_loss(terms, logits, log_probs, target_M1, counted_M1)
                loss += more
            if needs_grad:
                grad_logits = _grad_logits(logits, log_probs, target_M1, shift_M1, softcap, terms)
                # ignored tokens are struck out of the narrow factors, not of the wide gradient
                torch.mm(grad_logits, weight_VC, out=grad_hidden_NC[chunk])
                grad_hidden_NC[chunk] *= counted_M1
                _add_product(grad_weight_VC, grad_logits.T, hidden_MC * counted_M1)
                if grad_bias_V is not None:
                    grad_bias_V += (grad_logits.T.to(precise) @ counted_M1.to(precise))[:, 0]
        if needs_grad:
            ctx.save_for_backward(
                grad_hidden_NC,
                grad_weight_VC.to(weight_VC.dtype),
                None if grad_bias_V is None else grad_bias_V.to(weight_VC.dtype),
            )
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden_NC, grad_weight_VC, grad_bias_V = ctx.saved_tensors
        grad_bias_V = None if grad_bias_V is None else grad_bias_V * grad_loss
        return grad_hidden_NC * grad_loss, grad_weight_VC * grad_loss, grad_bias_V, None, None, None, None


def _more_loss(
    terms: LossTerms, logits_MV: Tensor, log_probs_MV: Tensor, target_M1: Tensor, counted_M1: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what the terms add to the loss, and log Z of each token."""
    likelihood_M1 = log_probs_MV.gather(1, target_M1)
    log_z_M1 = logits_MV.gather(1, target_M1) - likelihood_M1
    smooth_M1 = terms.label_smoothing * (likelihood_M1 - log_probs_MV.mean(dim=1, keepdim=True))
    more_M1 = smooth_M1 + terms.z_loss * log_z_M1.square()
    return more_M1.where(counted_M1, 0).sum(), log_z_M1


def _grad_logits(
    logits_MV: Tensor,
    log_probs_MV: Tensor,
    target_M1: Tensor,
    log_z_M1: Tensor | None,
    softcap: float,
    terms: LossTerms,
) -> Tensor:
    """Turn the log-probabilities, in place, into the gradient of the loss by the uncapped logits."""
    grad_MV = log_probs_MV.exp_()
    if log_z_M1 is not None:
        grad_MV *= 1.0 + 2.0 * terms.z_loss * log_z_M1
        grad_MV -= terms.label_smoothing / grad_MV.shape[1]
    hit = torch.full_like(target_M1, terms.label_smoothing - 1.0, dtype=grad_MV.dtype)
    grad_MV.scatter_add_(1, target_M1, hit)
    if softcap:
        grad_MV *= 1.0 - (logits_MV / softcap).square()
    return grad_MV.to(logits_MV.dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a @ b`` to ``total``, whose dtype may be wider."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
