"""What the CUDA kernels compute, in plain torch: their definition, and the fallback on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_SALT = 0x5EED


def philox(counter_4N: Tensor, key: tuple[int, int]) -> Tensor:
    """Return four random 32-bit words for each counter: Philox 4x32-10 (Salmon et al. 2011), in int64."""
    a_N, b_N, c_N, d_N = counter_4N
    first, second = key
    for _ in range(10):
        high0_N, low0_N = _multiply(a_N, 0xD2511F53)
        high1_N, low1_N = _multiply(c_N, 0xCD9E8D57)
        a_N, b_N, c_N, d_N = high1_N ^ b_N ^ first, low1_N, high0_N ^ d_N ^ second, low0_N
        first, second = (first + 0x9E3779B9) & _WORD, (second + 0xBB67AE85) & _WORD
    return torch.stack([a_N, b_N, c_N, d_N])


def _multiply(x_N: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the high and the low word of a product of 32-bit numbers, which int64 does not hold at once."""
    low_N = (x_N & 0xFFFF) * factor
    high_N = (x_N >> 16) * factor + (low_N >> 16)
    return high_N >> 16, ((high_N & 0xFFFF) << 16) | (low_N & 0xFFFF)


def noise(numel: int, number: int, step: int, seed: int, device: torch.device) -> Tensor:
    """Return 16 random bits for each element of the tensor ``number`` at ``step``."""
    groups = -(-numel // 8)
    group_N = torch.arange(groups, dtype=torch.int64, device=device)
    named = (torch.full_like(group_N, value & _WORD) for value in (number, step))
    words_4N = philox(torch.stack([group_N & _WORD, group_N >> 32, *named]), (seed & _WORD, _SALT))
    halves = torch.stack([words_4N & 0xFFFF, words_4N >> 16], dim=1)  # of each word, the lower first
    return halves.flatten(0, 1).T.flatten()[:numel]


def round_stochastic(value: Tensor, noise_N: Tensor) -> Tensor:
    """Round fp32 numbers to bf16, up with the probability of their distance from below."""
    bits = value.view(torch.int32).to(torch.int64)
    rounded = ((bits + noise_N.view_as(bits)) >> 16).to(torch.int16).view(torch.bfloat16)
    return torch.where(value.isfinite(), rounded, value.to(torch.bfloat16))


def adamw(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    seed: int,
) -> None:
    """Update bf16 weights and their fp32 moments in place (Loshchilov & Hutter 2019)."""
    beta1, beta2 = (torch.tensor(beta, dtype=torch.float32) for beta in betas)
    correction1 = torch.tensor(1 - betas[0] ** step, dtype=torch.float32)
    root_correction2 = torch.tensor((1 - betas[1] ** step) ** 0.5, dtype=torch.float32)
    for number, (weight, grad, mean, square) in enumerate(zip(weights, grads, means, squares, strict=True)):
        g, w = grad.float(), weight.float()
        mean.copy_(beta1 * mean + (1 - beta1) * g)
        square.copy_(beta2 * square + (1 - beta2) * g * g)
        update = lr * (mean / correction1) / (square.sqrt() / root_correction2 + eps)
        wanted = w - (lr * weight_decay) * w - update
        bits = noise(weight.numel(), number, step, seed, weight.device)
        weight.copy_(round_stochastic(wanted.contiguous(), bits))
