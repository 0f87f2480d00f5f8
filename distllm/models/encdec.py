"""The encoder-decoder: one stack reads the source, the other writes the target.

Shapes: B rows, N sources (as many, without a cache), S source positions, T target positions, C channels,
V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn

from distllm.config.shape import ModelShape
from distllm.data.batch import IGNORE_INDEX
from distllm.models.cache import KVCache
from distllm.models.heads import Head
from distllm.models.layers import Source
from distllm.models.moe import balanced
from distllm.models.stack import Stack, TokenEmbedding
from distllm.ops.attention import AttentionPlan, plan_attention
from distllm.ops.cross_entropy import NO_TERMS, LossTerms


class EncoderDecoder(nn.Module):
    """An encoder, and a decoder that attends to its output (Vaswani et al. 2017; Raffel et al. 2020).

    Source and target share one embedding.

    Args:
        shape: its dimensions.
        terms: what the loss adds to the cross-entropy in training mode.
    """

    def __init__(self, shape: ModelShape, terms: LossTerms = NO_TERMS) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = TokenEmbedding(shape)
        self.encoder = Stack(shape, shape.num_encoder_layers, causal=False)
        self.decoder = Stack(shape, shape.num_layers, causal=True, cross=True)
        self.lm_head = Head(shape, terms=terms)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Share the embedding with the output projection, if the shape says so."""
        if self.shape.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self,
        source_NS: Tensor,
        source_positions_NS: Tensor,
        source_segments_NS: Tensor | None,
        tokens_BT: Tensor,
        positions_BT: Tensor,
        segments_BT: Tensor | None = None,
        targets_BT: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        last_only: bool = False,
    ) -> Tensor:
        """Predict the next token of the target at each of its positions.

        Args:
            source_NS: ids of the source.
            source_positions_NS: place of each in its document.
            source_segments_NS: document of each, never decreasing along a row.
            tokens_BT: ids of the target, from the start of decoding on.
            positions_BT: place of each in its document.
            segments_BT: document of each; it reads the source of the same number, and nothing if
                there is none. None, with that of the source: a row is one pair.
            targets_BT: ids to predict, ``IGNORE_INDEX`` where there is no loss.
            cache: past positions of the target. After the first call it also holds what is needed of
                the source, which is not read again. A row of it is one document, whose source is the
                first segment of a source's row; with B = K N rows, K after one another read each source.
            last_only: whether only the logits after the last position are wanted; excludes targets.

        Returns:
            The logits_BTV or logits_B1V, or with targets the cross-entropy summed over them, an fp32 scalar.
        """
        if (source_segments_NS is None) != (segments_BT is None) and cache is None:
            raise ValueError("give segments of source and target, or of neither")
        if cache is not None and segments_BT is not None:
            raise ValueError("a cache holds one document per row: give no segments of the target")
        if last_only and targets_BT is not None:
            raise ValueError("targets stand at every position: ask for all of them")
        if cache is None:
            hidden_NSC = self._read(source_NS, source_positions_NS, source_segments_NS)
            source = Source(hidden_NSC, plan_attention(segments_BT, hidden_NSC.device, source_segments_NS))
        else:
            if cache.source is None:
                hidden_NSC = self._read(source_NS, source_positions_NS, source_segments_NS)
                cache.source = hidden_NSC, _first_segment(source_segments_NS)
            hidden_NSC, visible_N11S = cache.source
            source = Source(hidden_NSC, AttentionPlan(hidden_NSC.device.type), visible_N11S)
        x_BTC = self.embed_tokens(tokens_BT, positions_BT)
        hidden_BTC = self.decoder(x_BTC, positions_BT, segments_BT, cache, source)
        if last_only:
            hidden_BTC = hidden_BTC[:, -1:]
        result: Tensor = self.lm_head(hidden_BTC, targets_BT)
        if targets_BT is None:
            return result
        return balanced(result, self, self.shape, targets_BT, IGNORE_INDEX)

    def _read(self, source_NS: Tensor, positions_NS: Tensor, segments_NS: Tensor | None) -> Tensor:
        """Encode the source."""
        hidden_NSC: Tensor = self.encoder(
            self.embed_tokens(source_NS, positions_NS), positions_NS, segments_NS
        )
        return hidden_NSC


def _first_segment(segments_NS: Tensor | None) -> Tensor | None:
    """Return where the first document of each row stands; None: everywhere."""
    return None if segments_NS is None else (segments_NS == segments_NS[:, :1])[:, None, None]
