"""The common parts of all families: the embedding of tokens, and a stack of blocks.

Shapes: B rows, T positions, S positions of the source, C channels, H heads, R distances.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distllm.config.shape import ModelShape
from distllm.dist.sequence import SequenceGroup
from distllm.models.cache import KVCache
from distllm.models.layers import Block, Context, Norm, Source
from distllm.ops.attention import cached_mask, plan_attention
from distllm.ops.relative import alibi_slopes, distances, relative_buckets
from distllm.ops.rope import Rotation, rotation


class TokenEmbedding(nn.Embedding):
    """Embeddings of tokens, absolute positions and token types; then norm and dropout."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__(shape.vocab_size, shape.hidden_size)
        self.factor = math.sqrt(shape.hidden_size) if shape.scale_embedding else 1.0
        self.dropout = shape.dropout
        self.sinusoidal = shape.positions == "sinusoidal"
        learned = shape.positions == "learned"
        self.places = nn.Embedding(shape.max_seq_len, shape.hidden_size) if learned else None
        self.types = nn.Embedding(shape.token_types, shape.hidden_size) if shape.token_types else None
        self.norm = Norm(shape) if shape.embed_norm else None

    def forward(  # type: ignore[override]  # a table of tokens that knows more than tokens
        self, tokens_BT: Tensor, positions_BT: Tensor, types_BT: Tensor | None = None
    ) -> Tensor:
        """Return x_BTC of tokens at their positions; without ``types_BT`` all are of type 0."""
        x_BTC = super().forward(tokens_BT)
        if self.factor != 1.0:
            x_BTC = x_BTC * self.factor
        if self.types is not None:
            x_BTC = x_BTC + self.types(torch.zeros_like(tokens_BT) if types_BT is None else types_BT)
        if self.places is not None:
            x_BTC = x_BTC + self.places(positions_BT)
        if self.sinusoidal:
            x_BTC = x_BTC + sinusoids(positions_BT, x_BTC.shape[-1], x_BTC.dtype)
        if self.norm is not None:
            x_BTC = self.norm(x_BTC)
        if self.training and self.dropout:
            x_BTC = F.dropout(x_BTC, self.dropout)
        return x_BTC


class RelativeBias(nn.Module):
    """A learned attention bias by distance, shared by all layers (Raffel et al. 2020)."""

    def __init__(self, shape: ModelShape, *, causal: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(Tensor(shape.relative_buckets, shape.num_heads))
        self.farthest = shape.relative_distance
        self.causal = causal

    def forward(self, length: int) -> Tensor:
        """Return bias_HR for sequences of up to ``length`` positions."""
        distance_R = distances(length, self.weight.device)
        bucket_R = relative_buckets(distance_R, len(self.weight), self.farthest, causal=self.causal)
        return F.embedding(bucket_R, self.weight).T


class Stack(nn.Module):
    """Blocks one after another, and the norm after the last.

    Args:
        shape: the model's.
        num_layers: blocks.
        causal: whether positions see what follows them.
        cross: whether the blocks read a source.
    """

    def __init__(self, shape: ModelShape, num_layers: int, *, causal: bool, cross: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.layers = nn.ModuleList(
            Block(shape, layer, num_layers, causal=causal, cross=cross) for layer in range(num_layers)
        )
        self.norm = Norm(shape) if shape.norm_last else None
        self.relative = RelativeBias(shape, causal=causal) if shape.positions == "relative" else None

    def forward(
        self,
        x_BTC: Tensor,
        positions_BT: Tensor,
        segments_BT: Tensor | None = None,
        cache: KVCache | None = None,
        source: Source | None = None,
        sequence: SequenceGroup | None = None,
    ) -> Tensor:
        """Return the last hidden states_BTC.

        With a ``sequence`` group, states and positions are those of this rank, segments whole rows'.
        """
        contexts = self._contexts(x_BTC, positions_BT, segments_BT, cache, sequence)
        for index, block in enumerate(self.layers):
            context = contexts[bool(self.shape.windows[index])]
            x_BTC = block(x_BTC, context, cache.layers[index] if cache else None, source)
        return x_BTC if self.norm is None else cast(Tensor, self.norm(x_BTC))

    def _contexts(
        self,
        x_BTC: Tensor,
        positions_BT: Tensor,
        segments_BT: Tensor | None,
        cache: KVCache | None,
        sequence: SequenceGroup | None,
    ) -> tuple[Context, Context]:
        """Return the contexts of layers without and with a window."""
        shape, plan = self.shape, plan_attention(segments_BT, x_BTC.device)
        turns: list[Rotation | None] = [None]
        if shape.positions == "rope":
            turns = [
                rotation(positions_BT, shape.head_dim, theta, x_BTC.dtype, shape.rope)
                for theta in dict.fromkeys((shape.rope_theta, shape.rope_theta_local))
            ]
        length = cache.capacity if cache else x_BTC.shape[1] * (sequence.size if sequence else 1)
        bias_HR = self.relative(length) if self.relative is not None else None
        slopes_H = alibi_slopes(shape.num_heads, x_BTC.device) if shape.positions == "alibi" else None
        if sequence is not None:
            bias_HR, slopes_H = (None if x is None else sequence.heads(x) for x in (bias_HR, slopes_H))

        def context(turn: Rotation | None, window: int) -> Context:
            if cache is None:
                return Context(plan, turn, bias_HR, slopes_H, sequence)
            total = cache.length + x_BTC.shape[1]
            mask = cached_mask(x_BTC, total, window, bias_HR, slopes_H, cache.starts_B)
            return Context(plan, turn, mask=mask)

        wide = context(turns[0], 0)
        window = max(shape.windows)
        return wide, context(turns[-1], window) if window else wide


def sinusoids(positions_BT: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return the positions as sines, then cosines, of geometric wavelengths (Vaswani et al. 2017)."""
    channel_d = torch.arange(0, width, 2, dtype=torch.float32, device=positions_BT.device)
    angle_BTd = positions_BT[..., None] * 10000.0 ** (-channel_d / width)
    return torch.cat([angle_BTd.sin(), angle_BTd.cos()], dim=-1)[..., :width].to(dtype)


def compile_blocks(model: nn.Module) -> None:
    """Compile each block of a model in place; all that are alike share one graph.

    Modules are compiled inside their hooks, so that an engine may gather weights around a block.
    """
    for module in model.modules():
        if isinstance(module, Block):
            module.forward = torch.compile(module.forward, fullgraph=True)  # type: ignore[method-assign]
