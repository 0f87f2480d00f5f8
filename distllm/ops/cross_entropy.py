"""The output projection and its cross-entropy in one, without ever holding all logits.

The logits of a chunk of tokens are turned into gradients at once and dropped, so memory is that of
one chunk plus two gradients; the projection is not computed twice. The idea is that of Liger
Kernel's fused linear cross-entropy (Hsu et al. 2024).

Shapes: N tokens, M tokens of one chunk, C channels, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distllm.data.batch import IGNORE_INDEX

CHUNK_TOKENS = 512


def linear_cross_entropy(hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor) -> Tensor:
    """Return the summed cross-entropy of ``hidden_NC @ weight_VCᵀ`` against ``targets_N``.

    The result is an fp32 scalar (fp64 for fp64 inputs); targets of ``IGNORE_INDEX`` count nothing.
    """
    needs_grad = torch.is_grad_enabled() and (hidden_NC.requires_grad or weight_VC.requires_grad)
    loss: Tensor = _LinearCrossEntropy.apply(hidden_NC, weight_VC, targets_N.long(), needs_grad)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, needs_grad: bool
    ) -> Tensor:
        precise = torch.promote_types(hidden_NC.dtype, torch.float32)
        size = min(CHUNK_TOKENS, len(targets_N)), len(weight_VC)
        logits_MV = hidden_NC.new_empty(size)  # both buffers serve all chunks
        log_probs_MV = hidden_NC.new_empty(size, dtype=precise)
        loss = torch.zeros((), dtype=precise, device=hidden_NC.device)
        grad_hidden_NC = torch.empty_like(hidden_NC)
        grad_weight_VC = torch.zeros_like(weight_VC, dtype=precise)
        for start in range(0, len(targets_N), CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            hidden_MC, target_M1 = hidden_NC[chunk], targets_N[chunk, None]
            counted_M1 = target_M1 != IGNORE_INDEX
            target_M1 = target_M1.where(counted_M1, 0)
            logits, log_probs = logits_MV[: len(hidden_MC)], log_probs_MV[: len(hidden_MC)]
            torch.mm(hidden_MC, weight_VC.T, out=logits)
            torch.log_softmax(logits, dim=1, dtype=precise, out=log_probs)
            loss -= log_probs.gather(1, target_M1).where(counted_M1, 0).sum()
            if needs_grad:
                log_probs.exp_().scatter_add_(1, target_M1, -torch.ones_like(target_M1, dtype=precise))
                grad_logits = log_probs.to(hidden_MC.dtype)
                # ignored tokens are struck out of the narrow factors, not of the wide gradient
                torch.mm(grad_logits, weight_VC, out=grad_hidden_NC[chunk])
                grad_hidden_NC[chunk] *= counted_M1
                _add_product(grad_weight_VC, grad_logits.T, hidden_MC * counted_M1)
        if needs_grad:
            ctx.save_for_backward(grad_hidden_NC, grad_weight_VC.to(weight_VC.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden_NC, grad_weight_VC = ctx.saved_tensors
        return grad_hidden_NC * grad_loss, grad_weight_VC * grad_loss, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a @ b`` to ``total``, whose dtype may be wider."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
