"""The decoder: a Llama-style causal language model.

Shapes: B rows, T positions, C channels, V vocabulary.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from distllm.config.shape import ModelShape
from distllm.models.cache import KVCache
from distllm.models.layers import Block, Head, RMSNorm
from distllm.ops.attention import plan_attention
from distllm.ops.rope import rotation


class DecoderLM(nn.Module):
    """Embedding, blocks, norm and output projection (Touvron et al. 2023).

    The weights are not initialised: `distllm.models.init.build_model` does that.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.norm = RMSNorm(shape)
        self.lm_head = Head(shape)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Share the embedding with the output projection, if the shape says so."""
        if self.shape.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor,
        segments_BT: Tensor | None = None,
        targets_BT: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Predict the next token at each position.

        Args:
            tokens_BT: input ids.
            positions_BT: place of each token in its document.
            segments_BT: document of each token, never decreasing along a row; attention does not
                cross from one to another. None: each row is one document.
            targets_BT: ids to predict, ``IGNORE_INDEX`` where there is no loss.
            cache: past positions, which the rows attend to and are appended to; excludes segments.

        Returns:
            The logits_BTV, or with targets the cross-entropy summed over them, an fp32 scalar.
        """
        if cache is not None and segments_BT is not None:
            raise ValueError("a cache holds one document per row: give no segments")
        x_BTC = self.embed_tokens(tokens_BT)
        turns = rotation(positions_BT, self.shape.head_dim, self.shape.rope_theta, x_BTC.dtype)
        plan = plan_attention(segments_BT, x_BTC.device)
        for index, block in enumerate(self.layers):
            x_BTC = block(x_BTC, turns, plan, cache.layers[index] if cache else None)
        result: Tensor = self.lm_head(self.norm(x_BTC), targets_BT)
        return result


def compile_blocks(model: nn.Module) -> None:
    """Compile each block of a stack in place; all of them share one graph.

    Modules are compiled inside their hooks, so that an engine may gather weights around a block.
    """
    for block in cast(nn.ModuleList, model.layers):
        block.forward = torch.compile(block.forward, fullgraph=True)
