"""Rotary position embeddings (Su et al. 2021) in Llama's layout: channel d turns with d + D/2.

Shapes: B rows, T positions, H heads, D head width, d = D / 2 pairs of channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]


def rotation(positions_BT: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotation:
    """Return cos_BT1d and sin_BT1d of the angles at ``positions_BT``: once per forward, for all layers.

    The angles are computed in fp32 at least and rounded last; no table bounds the positions.
    """
    precise = torch.promote_types(dtype, torch.float32)
    channel_d = torch.arange(0, head_dim, 2, dtype=precise, device=positions_BT.device)
    frequency_d = 1.0 / theta ** (channel_d / head_dim)
    angle_BT1d = positions_BT[:, :, None, None].to(precise) * frequency_d
    return angle_BT1d.cos().to(dtype), angle_BT1d.sin().to(dtype)


def rotate(x_BTHD: Tensor, by: Rotation) -> Tensor:
    """Turn each pair of channels of ``x_BTHD``."""
    cos_BT1d, sin_BT1d = by
    a_BTHd, b_BTHd = x_BTHD.chunk(2, dim=-1)
    turned = (a_BTHd * cos_BT1d - b_BTHd * sin_BT1d, b_BTHd * cos_BT1d + a_BTHd * sin_BT1d)
    return torch.cat(turned, dim=-1)
