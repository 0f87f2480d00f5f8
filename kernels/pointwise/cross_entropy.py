"""The output projection and its cross-entropy without all logits in memory at once.

The forward pass keeps two numbers per token; the backward pass computes the logits of a chunk of tokens
again and turns them into their gradient in place. So any upstream gradient per token is exact, and
memory is one chunk; the price is a fourth product beside the three of a plain head. The weight's
gradient is summed over the chunks in fp32.

Shapes: N tokens, M tokens of a chunk, C channels, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from distllm.kernels.device import INTERPRETER, architecture
from distllm.kernels.pointwise.blocks import accumulate, accumulate_type

_CHUNK_BYTES = 1 << 28  # of logits


@dataclass(frozen=True, slots=True)
class LossTerms:
    """What the loss of a token consists of; see `distllm.kernels.pointwise.op.linear_cross_entropy`."""

    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float


@triton.jit
def bend_logits(x: tl.tensor, SOFTCAP: tl.constexpr) -> tl.tuple:
    """Return the soft-capped logits and the derivative of the cap."""
    if SOFTCAP > 0:
        tanh = 1.0 - 2.0 / (tl.exp(x * (2.0 / SOFTCAP)) + 1.0)
        return tanh * SOFTCAP, 1.0 - tanh * tanh
    return x, x * 0.0 + 1.0


@triton.jit
def cross_entropy_forward_kernel(
    LOGITS: tl.tensor, TARGETS: tl.tensor, LOSS: tl.tensor, PEAK: tl.tensor, LOG_TOTAL: tl.tensor,
    vocabulary: int, ignore_index: int, smoothing: float, z_loss: float, SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr, ACC: tl.constexpr,
) -> None:  # fmt: skip
    """Write the loss of one token, and its largest logit and the log-sum-exp above it.

    The two are kept apart, and the loss is a difference from the peak: a shift of all logits loses no digits.
    """
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(TARGETS + row)
    peak = tl.cast(float("-inf"), ACC)
    total = tl.cast(0.0, ACC)
    for start in tl.range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < vocabulary
        x, _ = bend_logits(tl.load(LOGITS + row * vocabulary + column, mask=mask, other=0.0).to(ACC), SOFTCAP)
        x = tl.where(mask, x, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(x, 0))
        total = total * tl.exp(peak - new_peak) + tl.sum(tl.exp(x - new_peak), 0)
        peak = new_peak
    log_total = tl.log(total)
    ignored = target == ignore_index
    place = row * vocabulary + tl.where(ignored, 0, target)
    at_target, _slope = bend_logits(tl.load(LOGITS + place).to(ACC), SOFTCAP)
    loss = log_total + (peak - at_target)
    if smoothing > 0:
        below = tl.cast(0.0, ACC)
        for start in tl.range(0, vocabulary, BLOCK):
            column = start + tl.arange(0, BLOCK)
            mask = column < vocabulary
            x, _ = bend_logits(
                tl.load(LOGITS + row * vocabulary + column, mask=mask, other=0.0).to(ACC), SOFTCAP
            )
            below += tl.sum(tl.where(mask, peak - x, 0.0), 0)
        loss = (1.0 - smoothing) * loss + smoothing * (log_total + below / vocabulary)
    lse = peak + log_total
    loss += z_loss * lse * lse
    tl.store(LOSS + row, tl.where(ignored, 0.0, loss))
    tl.store(PEAK + row, peak)
    tl.store(LOG_TOTAL + row, log_total)


@triton.jit
def cross_entropy_backward_kernel(
    LOGITS: tl.tensor, TARGETS: tl.tensor, GRAD: tl.tensor, PEAK: tl.tensor, LOG_TOTAL: tl.tensor,
    vocabulary: int, ignore_index: int, smoothing: float, z_loss: float, SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr, ACC: tl.constexpr,
) -> None:  # fmt: skip
    """Turn one block of a token's logits into their gradient, in place."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < vocabulary
    target = tl.load(TARGETS + row)
    peak = tl.load(PEAK + row)
    log_total = tl.load(LOG_TOTAL + row)
    grad = tl.where(target == ignore_index, 0.0, tl.load(GRAD + row).to(ACC))
    pointers = LOGITS + row * vocabulary + column
    x, slope = bend_logits(tl.load(pointers, mask=mask, other=0.0).to(ACC), SOFTCAP)
    weights = tl.exp((x - peak) - log_total)
    hot = tl.where(column == target, 1.0 - smoothing, 0.0)
    change = weights * (1.0 + 2.0 * z_loss * (peak + log_total)) - hot - smoothing / vocabulary
    tl.store(pointers, (grad * change * slope).to(LOGITS.dtype.element_ty), mask=mask)


def block_size(vocabulary: int, device: torch.device) -> int:
    """Return how many logits a program holds at a time."""
    whole: int = triton.next_power_of_2(vocabulary)
    return min(whole, 32 if architecture(device) == INTERPRETER else 4096)


def chunk_tokens(vocabulary: int, itemsize: int, device: torch.device) -> int:
    """Return how many tokens' logits are held at once."""
    if architecture(device) == INTERPRETER:
        return 7
    return max(_CHUNK_BYTES // (vocabulary * itemsize), 1)


def launch_cross_entropy(
    hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, terms: LossTerms
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss_N, peak_N and log_total_N in fp32 (fp64 for fp64)."""
    tokens, vocabulary = len(hidden_NC), len(weight_VC)
    results = [hidden_NC.new_empty((tokens,), dtype=accumulate(hidden_NC.dtype)) for _ in range(3)]
    step = chunk_tokens(vocabulary, hidden_NC.element_size(), hidden_NC.device)
    block = block_size(vocabulary, hidden_NC.device)
    for start in range(0, tokens, step):
        chunk = slice(start, start + step)
        logits_MV = hidden_NC[chunk] @ weight_VC.T
        cross_entropy_forward_kernel[(len(logits_MV),)](
            logits_MV, targets_N[chunk], *(x[chunk] for x in results), vocabulary, terms.ignore_index,
            terms.label_smoothing, terms.z_loss, SOFTCAP=terms.softcap, BLOCK=block,
            ACC=accumulate_type(hidden_NC.dtype), num_warps=8,
        )  # fmt: skip
    loss_N, peak_N, log_total_N = results
    return loss_N, peak_N, log_total_N


def launch_cross_entropy_backward(
    grad_N: Tensor,
    hidden_NC: Tensor,
    weight_VC: Tensor,
    targets_N: Tensor,
    statistics: tuple[Tensor, Tensor],
    terms: LossTerms,
) -> tuple[Tensor, Tensor]:
    """Return dhidden_NC and dweight_VC; ``statistics`` are peak_N and log_total_N."""
    tokens, vocabulary = len(hidden_NC), len(weight_VC)
    dhidden_NC = hidden_NC.new_empty(hidden_NC.shape)
    dweight_VC = weight_VC.new_zeros(weight_VC.shape, dtype=accumulate(weight_VC.dtype))
    step = chunk_tokens(vocabulary, hidden_NC.element_size(), hidden_NC.device)
    block = block_size(vocabulary, hidden_NC.device)
    for start in range(0, tokens, step):
        chunk = slice(start, start + step)
        logits_MV = hidden_NC[chunk] @ weight_VC.T
        cross_entropy_backward_kernel[(len(logits_MV), triton.cdiv(vocabulary, block))](
            logits_MV, targets_N[chunk], grad_N[chunk], *(x[chunk] for x in statistics), vocabulary,
            terms.ignore_index, terms.label_smoothing, terms.z_loss, SOFTCAP=terms.softcap, BLOCK=block,
            ACC=accumulate_type(hidden_NC.dtype), num_warps=8,
        )  # fmt: skip
        torch.mm(logits_MV, weight_VC, out=dhidden_NC[chunk])
        dweight_VC += _precise_product(logits_MV.T, hidden_NC[chunk])
    return dhidden_NC, dweight_VC.to(weight_VC.dtype)


def _precise_product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b`` in the dtype of sums, not rounded to that of the factors."""
    precise = accumulate(a.dtype)
    if a.dtype == precise:
        return a @ b
    if a.device.type == "cpu":
        return a.to(precise) @ b.to(precise)
    return torch.mm(a, b, out_dtype=precise)
