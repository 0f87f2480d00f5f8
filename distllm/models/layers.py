"""The parts of a Llama-style block: attention, gated MLP, and the pre-norm residual block.

Matrices that read the same input are stored as one (queries, keys and values; gate and up): one
large product is faster than several small ones. `distllm.export` splits them again.

Shapes: B rows, T positions, C channels, H query heads, K key/value heads, D head width, I MLP
width, V vocabulary, N = B * T tokens.
"""

from __future__ import annotations

from torch import Tensor, nn

from distllm.config.shape import ModelShape
from distllm.models.cache import LayerCache
from distllm.ops.attention import AttentionPlan, attend, attend_cached
from distllm.ops.cross_entropy import linear_cross_entropy
from distllm.ops.mlp import swiglu
from distllm.ops.norm import rms_norm
from distllm.ops.rope import Rotation, rotate


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.weight = nn.Parameter(Tensor(shape.hidden_size))
        self.eps = shape.norm_eps

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Normalise each position."""
        return rms_norm(x_BTC, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped key/value heads.

    The rows of ``qkv_proj`` are those of all queries, then all keys, then all values.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.heads = [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads]
        width = shape.num_heads * shape.head_dim
        self.qkv_proj = nn.Linear(shape.hidden_size, sum(self.heads) * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=False)

    def forward(
        self, x_BTC: Tensor, rotation: Rotation, plan: AttentionPlan, cache: LayerCache | None = None
    ) -> Tensor:
        """Attend within the batch as ``plan`` says or, given a cache, to everything in it."""
        heads = self.qkv_proj(x_BTC).unflatten(-1, (-1, self.head_dim))
        q_BTHD, k_BTKD, v_BTKD = heads.split(self.heads, dim=2)
        q_BTHD, k_BTKD = rotate(q_BTHD, rotation), rotate(k_BTKD, rotation)
        if cache is None:
            out_BTHD = attend(q_BTHD, k_BTKD, v_BTKD, plan)
        else:
            out_BTHD = attend_cached(q_BTHD, *cache.extend(k_BTKD, v_BTKD))
        out_BTC: Tensor = self.o_proj(out_BTHD.flatten(-2))
        return out_BTC


class MLP(nn.Module):
    """The gated MLP; the rows of ``gate_up_proj`` are those of the gate, then of the up projection."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(shape.hidden_size, 2 * shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Apply the MLP to each position."""
        gate_BTI, up_BTI = self.gate_up_proj(x_BTC).chunk(2, dim=-1)
        out_BTC: Tensor = self.down_proj(swiglu(gate_BTI, up_BTI))
        return out_BTC


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape)
        self.mlp = MLP(shape)

    def forward(
        self, x_BTC: Tensor, rotation: Rotation, plan: AttentionPlan, cache: LayerCache | None = None
    ) -> Tensor:
        """Advance the residual stream by one layer."""
        x_BTC = x_BTC + self.self_attn(self.input_layernorm(x_BTC), rotation, plan, cache)
        out_BTC: Tensor = x_BTC + self.mlp(self.post_attention_layernorm(x_BTC))
        return out_BTC


class Head(nn.Linear):
    """The output projection, and the loss that is computed without holding its output.

    It owns its weight, or shares it with the embedding: either way the weight is used inside the
    module that registers it, which is what ZeRO-3's gathering needs.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__(shape.hidden_size, shape.vocab_size, bias=False)

    def forward(self, x_BTC: Tensor, targets_BT: Tensor | None = None) -> Tensor:
        """Return logits_BTV or, given targets, their summed cross-entropy."""
        if targets_BT is None:
            return super().forward(x_BTC)
        return linear_cross_entropy(x_BTC.flatten(0, 1), self.weight, targets_BT.flatten())
