"""Attention biases that depend on the distance from a query to a key only.

Such a bias is a table: one value per head and distance. Attention reads it along diagonals.

Shapes: T positions, H heads, R = 2 T - 1 distances from 1 - T (far behind) to T - 1 (far ahead).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def distances(length: int, device: torch.device) -> Tensor:
    """Return distance_R, the place of the key minus that of the query."""
    return torch.arange(1 - length, length, device=device)


def relative_buckets(distance_R: Tensor, num_buckets: int, farthest: int, *, causal: bool) -> Tensor:
    """Return the bucket of each distance (Raffel et al. 2020, section 2.1).

    Half of the buckets hold one distance each, the others grow logarithmically up to ``farthest``,
    and all beyond share the last. Without ``causal`` keys ahead have buckets of their own.
    """
    first_R = torch.zeros_like(distance_R)
    if causal:
        away_R = (-distance_R).clamp(min=0)
    else:
        num_buckets //= 2
        first_R = (distance_R > 0).long() * num_buckets
        away_R = distance_R.abs()
    exact = num_buckets // 2
    grown_R = (away_R.float() / exact).log() / math.log(farthest / exact) * (num_buckets - exact)
    far_R = (exact + grown_R.clamp(min=0).long()).clamp(max=num_buckets - 1)
    return first_R + torch.where(away_R < exact, away_R, far_R)


def alibi_slopes(num_heads: int, device: torch.device) -> Tensor:
    """Return slopes_H: each head's penalty per position of distance (Press et al. 2022, section 3).

    Slopes are geometric and begin with 2 ** (-8 / H). If H is not a power of two, the missing ones are
    every other slope for twice as many heads.
    """
    whole = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8 * (head + 1) / whole) for head in range(whole)]
    slopes += [2.0 ** (-4 * (2 * head + 1) / whole) for head in range(num_heads - whole)]
    return torch.tensor(slopes, device=device)


def alibi(slopes_H: Tensor, length: int) -> Tensor:
    """Return bias_HR, the penalties that the slopes give for up to ``length`` positions."""
    return -slopes_H[:, None] * distances(length, slopes_H.device).abs()


def along_diagonals(bias_HR: Tensor, rows: int, columns: int, shift: int) -> Tensor:
    """Return bias_HLM whose entry (i, j) is the bias of distance ``j - i + shift``."""
    zero = bias_HR.shape[1] // 2
    i_L = torch.arange(rows, device=bias_HR.device)[:, None]
    j_M = torch.arange(columns, device=bias_HR.device)
    return bias_HR[:, zero + shift + j_M - i_L]


def sum_diagonals(total_HR: Tensor, gradient_HLM: Tensor, shift: int) -> None:
    """Add ``gradient_HLM`` to the distances it came from: the transpose of `along_diagonals`."""
    heads, rows, columns = gradient_HLM.shape
    # With its rows reversed and skewed by one each, a diagonal becomes a column.
    skewed = gradient_HLM.new_zeros(heads, rows, rows + columns)
    skewed[:, :, :columns] = gradient_HLM.flip(1)
    width = rows + columns - 1
    columns_HW = skewed.flatten(1)[:, : rows * width].view(heads, rows, width).sum(dim=1)
    start = total_HR.shape[1] // 2 + shift - (rows - 1)
    total_HR[:, start : start + width] += columns_HW
