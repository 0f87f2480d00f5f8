"""Rotary position embeddings (Su et al. 2021) in Llama's layout: channel d turns with d + D/2.

Shapes: B rows, T positions, H heads, D head width, d = D / 2 pairs of channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distllm.config.schema_model import RopeConfig
from distllm.ops.backend import triton_serves

Rotation = tuple[Tensor, Tensor]
PLAIN = RopeConfig()


def rotation(
    positions_BT: Tensor, head_dim: int, theta: float, dtype: torch.dtype, rope: RopeConfig = PLAIN
) -> Rotation:
    """Return cos_BT1d and sin_BT1d of the angles at ``positions_BT``: once per forward, for all layers.

    The angles are computed in fp32 at least and rounded last; no table bounds the positions.
    """
    precise = torch.promote_types(dtype, torch.float32)
    channel_d = torch.arange(0, head_dim, 2, dtype=precise, device=positions_BT.device)
    frequency_d = 1.0 / theta ** (channel_d / head_dim)
    if rope.scaling != "none":
        frequency_d = _stretched(frequency_d, head_dim, theta, rope)
    angle_BT1d = positions_BT[:, :, None, None].to(precise) * frequency_d
    cos_BT1d, sin_BT1d = angle_BT1d.cos(), angle_BT1d.sin()
    if rope.scaling == "yarn":
        factor = rope.attention_factor or 0.1 * math.log(rope.factor) + 1.0
        cos_BT1d, sin_BT1d = cos_BT1d * factor, sin_BT1d * factor
    return cos_BT1d.to(dtype), sin_BT1d.to(dtype)


def rotate(x_BTHD: Tensor, by: Rotation) -> Tensor:
    """Turn each pair of channels of ``x_BTHD``."""
    cos_BT1d, sin_BT1d = by
    if triton_serves(x_BTHD):
        from distllm.kernels.pointwise import op

        rows = x_BTHD.shape[0]  # positions that all rows share come as one row
        return op.rope(x_BTHD, cos_BT1d.expand(rows, -1, -1, -1), sin_BT1d.expand(rows, -1, -1, -1))
    a_BTHd, b_BTHd = x_BTHD.chunk(2, dim=-1)
    turned = (a_BTHd * cos_BT1d - b_BTHd * sin_BT1d, b_BTHd * cos_BT1d + a_BTHd * sin_BT1d)
    return torch.cat(turned, dim=-1)


def _stretched(frequency_d: Tensor, head_dim: int, theta: float, rope: RopeConfig) -> Tensor:
    """Return the frequencies, lowered so that positions reach ``rope.factor`` times further.

    ``llama3`` and ``yarn`` keep the fast frequencies, which separate neighbours, lower the slow
    ones, and blend in between: by turns within the original context (Llama 3.1), or by channel
    between two such limits (Peng et al. 2023, section 3.2).
    """
    slow_d = frequency_d / rope.factor
    if rope.scaling == "linear":
        return slow_d
    length = rope.original_len
    assert length is not None  # checked with the configuration
    if rope.scaling == "llama3":
        turns_d = length * frequency_d / (2 * math.pi)
        kept_d = (turns_d - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    else:

        def channel(turns: float) -> float:
            return head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low = max(math.floor(channel(rope.beta_fast)), 0)
        high = min(math.ceil(channel(rope.beta_slow)), head_dim - 1)
        index_d = torch.arange(len(frequency_d), dtype=frequency_d.dtype, device=frequency_d.device)
        kept_d = 1.0 - (index_d - low) / max(high - low, 1e-3)
    kept_d = kept_d.clamp(0.0, 1.0)
    return frequency_d * kept_d + slow_d * (1.0 - kept_d)
