"""The parts of a Transformer block, and the block that every stack is made of.

Matrices that read the same input are stored as one (queries, keys and values; gate and up): one
large product is faster than several small ones. `distllm.export` splits them again.

Shapes: B rows, T positions, N sources of S positions, C channels, H query heads, K key/value heads,
D head width, I MLP width, R distances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distllm.config.shape import ModelShape
from distllm.dist.sequence import SequenceGroup
from distllm.models.cache import LayerCache
from distllm.models.moe import MixtureOfExperts
from distllm.ops.attention import AttentionPlan, Pattern, attend, attend_cached, attend_source
from distllm.ops.mlp import activate, gated
from distllm.ops.norm import layer_norm, rms_norm
from distllm.ops.rope import Rotation, rotate


@dataclass(frozen=True)
class Context:
    """The input of a layer besides its activations.

    Attributes:
        plan: which positions share a document.
        turns: rotary angles, if positions are rotary.
        bias_HR: attention bias by distance, if positions are relative; of this rank's heads.
        slopes_H: ALiBi's penalty per position of distance, if positions are ALiBi; of this rank's heads.
        sequence: the ranks that share the batch's rows, if several do.
        mask: with a cache, what its positions can see; the other attributes are then not used for that.
    """

    plan: AttentionPlan
    turns: Rotation | None = None
    bias_HR: Tensor | None = None
    slopes_H: Tensor | None = None
    sequence: SequenceGroup | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class Source:
    """The source that a decoder attends to.

    Attributes:
        hidden_NSC: the encoder's output; with a cache, several rows may read each of N sources.
        plan: which positions see which of the source, without a cache.
        visible_N11S: which positions of the source are seen, with a cache; None: all.
    """

    hidden_NSC: Tensor
    plan: AttentionPlan
    visible_N11S: Tensor | None = None


class Norm(nn.Module):
    """RMSNorm or LayerNorm with a learned scale, and a learned shift if the shape says so."""

    def __init__(self, shape: ModelShape, width: int | None = None) -> None:
        super().__init__()
        width = width or shape.hidden_size
        self.weight = nn.Parameter(Tensor(width))
        self.bias = nn.Parameter(Tensor(width)) if shape.norm_bias else None
        self.eps = shape.norm_eps
        self.centred = shape.layer_norm

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Normalise each position."""
        if self.centred:
            return layer_norm(x_BTC, self.weight, self.bias, self.eps)
        return rms_norm(x_BTC, self.weight, self.eps)


class HeadNorm(nn.Module):
    """RMSNorm of queries or keys: of each head, or of all heads together (Henry et al. 2020)."""

    def __init__(self, shape: ModelShape, num_heads: int) -> None:
        super().__init__()
        self.together = shape.qk_norm == "all"
        self.weight = nn.Parameter(Tensor(num_heads * shape.head_dim if self.together else shape.head_dim))
        self.eps = shape.norm_eps

    def forward(self, x_BTHD: Tensor) -> Tensor:
        """Normalise each position."""
        if self.together:
            return rms_norm(x_BTHD.flatten(-2), self.weight, self.eps).view_as(x_BTHD)
        return rms_norm(x_BTHD, self.weight, self.eps)


class Attention(nn.Module):
    """Self-attention with grouped key/value heads.

    The rows of ``qkv_proj`` are those of all queries, then all keys, then all values.
    """

    def __init__(self, shape: ModelShape, *, causal: bool, window: int) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.heads = [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads]
        self.pattern = Pattern(causal, window, shape.attention_scale, shape.attention_softcap)
        width = shape.num_heads * shape.head_dim
        self.qkv_proj = nn.Linear(
            shape.hidden_size, sum(self.heads) * shape.head_dim, bias=shape.attention_bias
        )
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=shape.attention_out_bias)
        normed = shape.qk_norm != "none"
        self.q_norm = HeadNorm(shape, shape.num_heads) if normed else None
        self.k_norm = HeadNorm(shape, shape.num_kv_heads) if normed else None

    def forward(self, x_BTC: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        """Attend within the batch as the plan says or, given a cache, to everything in it."""
        heads = self.qkv_proj(x_BTC).unflatten(-1, (-1, self.head_dim))
        q_BTHD, k_BTKD, v_BTKD = heads.split(self.heads, dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHD, k_BTKD = self.q_norm(q_BTHD), self.k_norm(k_BTKD)
        if context.turns is not None:
            q_BTHD, k_BTKD = rotate(q_BTHD, context.turns), rotate(k_BTKD, context.turns)
        sequence = context.sequence
        if sequence is not None:
            q_BTHD, k_BTKD, v_BTKD = sequence.to_heads(q_BTHD, k_BTKD, v_BTKD)
        if cache is None:
            out_BTHD = attend(
                q_BTHD, k_BTKD, v_BTKD, context.plan, self.pattern, context.bias_HR, context.slopes_H
            )
            if sequence is not None:
                out_BTHD = sequence.to_positions(out_BTHD)
        else:
            past = cache.extend(k_BTKD, v_BTKD)
            out_BTHD = attend_cached(q_BTHD, *past, self.pattern, context.mask)
        out_BTC: Tensor = self.o_proj(out_BTHD.flatten(-2))
        return out_BTC


class CrossAttention(nn.Module):
    """Attention of a decoder to the encoder's output; the rows of ``kv_proj`` are keys, then values."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.pattern = Pattern(causal=False, scale=shape.attention_scale, softcap=shape.attention_softcap)
        width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, width, bias=shape.attention_bias)
        self.kv_proj = nn.Linear(shape.hidden_size, 2 * kv_width, bias=shape.attention_bias)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=shape.attention_out_bias)
        normed = shape.qk_norm != "none"
        self.q_norm = HeadNorm(shape, shape.num_heads) if normed else None
        self.k_norm = HeadNorm(shape, shape.num_kv_heads) if normed else None

    def forward(self, x_BTC: Tensor, source: Source, cache: LayerCache | None = None) -> Tensor:
        """Attend to the source's segment of the same number; a cache keeps the source's keys and values."""
        q_BTHD = self.q_proj(x_BTC).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None:
            q_BTHD = self.q_norm(q_BTHD)
        if cache is None:
            out_BTHD = attend(q_BTHD, *self._read(source.hidden_NSC), source.plan, self.pattern)
        else:
            cache.source = cache.source or self._read(source.hidden_NSC)
            out_BTHD = attend_source(q_BTHD, *cache.source, self.pattern, source.visible_N11S)
        out_BTC: Tensor = self.o_proj(out_BTHD.flatten(-2))
        return out_BTC

    def _read(self, hidden_NSC: Tensor) -> tuple[Tensor, Tensor]:
        k_NSKD, v_NSKD = self.kv_proj(hidden_NSC).unflatten(-1, (-1, self.head_dim)).chunk(2, dim=2)
        return k_NSKD if self.k_norm is None else self.k_norm(k_NSKD), v_NSKD


class MLP(nn.Module):
    """The gated MLP; the rows of ``gate_up_proj`` are those of the gate, then of the up projection."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.activation = shape.activation
        self.gate_up_proj = nn.Linear(shape.hidden_size, 2 * shape.intermediate_size, bias=shape.mlp_bias)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=shape.mlp_bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Apply the MLP to each position."""
        gate_BTI, up_BTI = self.gate_up_proj(x_BTC).chunk(2, dim=-1)
        out_BTC: Tensor = self.down_proj(gated(gate_BTI, up_BTI, self.activation))
        return out_BTC


class PlainMLP(nn.Module):
    """The MLP without a gate (Vaswani et al. 2017)."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.activation = shape.activation
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=shape.mlp_bias)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=shape.mlp_bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Apply the MLP to each position."""
        out_BTC: Tensor = self.down_proj(activate(self.up_proj(x_BTC), self.activation))
        return out_BTC


class Block(nn.Module):
    """Attention, in a decoder with a source attention to it, and an MLP, each added to the residual.

    Args:
        shape: the model's.
        layer: its place in the stack, from 0.
        depth: blocks in the stack.
        causal: whether positions see what follows them.
        cross: whether it reads a source.
    """

    def __init__(self, shape: ModelShape, layer: int, depth: int, *, causal: bool, cross: bool) -> None:
        super().__init__()
        self.place = shape.norm_place
        self.dropout = shape.dropout
        self.layer_drop = shape.layer_drop * (layer + 1) / depth
        bare = layer == 0 and not shape.norm_first
        self.input_layernorm: nn.Module = nn.Identity() if bare else Norm(shape)
        self.self_attn = Attention(shape, causal=causal, window=shape.windows[layer])
        self.cross_attention_layernorm = Norm(shape) if cross else None
        self.cross_attn = CrossAttention(shape) if cross else None
        self.post_attention_layernorm = Norm(shape)
        self.mlp: nn.Module
        if shape.num_experts:
            self.mlp = MixtureOfExperts(shape)
        else:
            self.mlp = MLP(shape) if shape.gated else PlainMLP(shape)

    def forward(
        self,
        x_BTC: Tensor,
        context: Context,
        cache: LayerCache | None = None,
        source: Source | None = None,
    ) -> Tensor:
        """Advance the residual stream by one layer."""
        kept_B11 = self._kept(x_BTC)
        x_BTC = self._add(
            x_BTC, self.input_layernorm, lambda h_BTC: self.self_attn(h_BTC, context, cache), kept_B11
        )
        cross, norm = self.cross_attn, self.cross_attention_layernorm
        if cross is not None and norm is not None and source is not None:
            x_BTC = self._add(x_BTC, norm, lambda h_BTC: cross(h_BTC, source, cache), kept_B11)
        return self._add(x_BTC, self.post_attention_layernorm, self.mlp, kept_B11)

    def _add(
        self,
        x_BTC: Tensor,
        norm: nn.Module,
        sublayer: Callable[[Tensor], Tensor],
        kept_B11: Tensor | None,
    ) -> Tensor:
        """Add a sublayer to the residual stream, with its norm where the shape has it."""
        out_BTC = sublayer(norm(x_BTC) if self.place == "pre" else x_BTC)
        if self.place == "output":
            out_BTC = norm(out_BTC)
        if self.training and self.dropout:
            out_BTC = F.dropout(out_BTC, self.dropout)
        if kept_B11 is not None:
            out_BTC = out_BTC * kept_B11
        out_BTC = x_BTC + out_BTC
        normed: Tensor = norm(out_BTC) if self.place == "post" else out_BTC
        return normed

    def _kept(self, x_BTC: Tensor) -> Tensor | None:
        """Draw the rows that do not skip this block, scaled to keep the mean (Huang et al. 2016)."""
        if not (self.training and self.layer_drop):
            return None
        kept_B11 = torch.rand(len(x_BTC), 1, 1, device=x_BTC.device) >= self.layer_drop
        return kept_B11.to(x_BTC.dtype) / (1.0 - self.layer_drop)
