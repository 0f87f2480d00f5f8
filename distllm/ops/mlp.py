"""The MLP's activations.

Shapes: B rows, T positions, I MLP width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distllm.config.schema_model import Activation
from distllm.ops.backend import triton_serves


def activate(x_BTI: Tensor, name: Activation) -> Tensor:
    """Return the activation ``name`` of ``x_BTI``; ``gelu_tanh`` approximates gelu as GPT-2 does."""
    if name == "silu":
        return F.silu(x_BTI)
    if name == "relu":
        return F.relu(x_BTI)
    return F.gelu(x_BTI, approximate="tanh" if name == "gelu_tanh" else "none")


def gated(gate_BTI: Tensor, up_BTI: Tensor, name: Activation) -> Tensor:
    """Return ``activation(gate) * up`` (Shazeer 2020): SwiGLU with silu, GEGLU with gelu."""
    if triton_serves(gate_BTI) and name != "relu":
        from distllm.kernels.pointwise import op

        return op.gated_activation(gate_BTI, up_BTI, name)
    return activate(gate_BTI, name) * up_BTI
