"""The gated activation.

Shapes: B rows, T positions, I MLP width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def swiglu(gate_BTI: Tensor, up_BTI: Tensor) -> Tensor:
    """Return ``silu(gate) * up`` (Shazeer 2020)."""
    return F.silu(gate_BTI) * up_BTI
