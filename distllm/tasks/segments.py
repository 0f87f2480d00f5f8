"""Sums and softmaxes over the segments of packed rows.

Shapes: B rows, T positions, G segments of all rows.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_numbers(segments_BT: Tensor) -> tuple[Tensor, int]:
    """Return for each position the index of its segment among those of all rows, and G."""
    width = int(segments_BT.max()) + 1
    first_B1 = torch.arange(segments_BT.shape[0], device=segments_BT.device)[:, None] * width
    return (segments_BT + first_B1).long(), segments_BT.shape[0] * width


def segment_sum(values_BT: Tensor, number_BT: Tensor, count: int) -> Tensor:
    """Return the sum of each segment, sums_G."""
    sums_G = torch.zeros(count, dtype=values_BT.dtype, device=values_BT.device)
    return sums_G.index_add(0, number_BT.flatten(), values_BT.flatten())


def segment_log_softmax(scores_BT: Tensor, allowed_BT: Tensor, number_BT: Tensor, count: int) -> Tensor:
    """Return log-probabilities over the allowed positions of each segment; other positions are undefined."""
    scores_BT = scores_BT.masked_fill(~allowed_BT, -torch.inf)
    top_G = torch.full((count,), -torch.inf, dtype=scores_BT.dtype, device=scores_BT.device)
    top_G = top_G.scatter_reduce(0, number_BT.flatten(), scores_BT.detach().flatten(), "amax")
    shifted_BT = scores_BT - top_G.clamp_min(torch.finfo(scores_BT.dtype).min)[number_BT]
    total_G = segment_sum(shifted_BT.exp(), number_BT, count)
    return shifted_BT - total_G.clamp_min(torch.finfo(scores_BT.dtype).tiny).log()[number_BT]
