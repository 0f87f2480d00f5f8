"""The decoder: a causal language model in the manner of GPT-2 or Llama.

Shapes: B rows, T positions, C channels, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn

from distllm.config.shape import ModelShape
from distllm.data.batch import IGNORE_INDEX
from distllm.dist.sequence import SequenceGroup
from distllm.models.cache import KVCache
from distllm.models.heads import Head
from distllm.models.moe import balanced
from distllm.models.stack import Stack, TokenEmbedding
from distllm.ops.cross_entropy import NO_TERMS, LossTerms


class DecoderLM(nn.Module):
    """Embedding, blocks and output projection (Radford et al. 2019; Touvron et al. 2023).

    The weights are not initialised: `distllm.models.init.build_model` does that.

    Args:
        shape: its dimensions.
        terms: what the loss adds to the cross-entropy in training mode.
    """

    def __init__(self, shape: ModelShape, terms: LossTerms = NO_TERMS) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = TokenEmbedding(shape)
        self.decoder = Stack(shape, shape.num_layers, causal=True)
        self.lm_head = Head(shape, terms=terms)
        self.sequence: SequenceGroup | None = None
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
        *,
        last_only: bool = False,
    ) -> Tensor:
        """Predict the next token at each position.

        Args:
            tokens_BT: input ids.
            positions_BT: place of each token in its document.
            segments_BT: document of each token, never decreasing along a row; attention does not
                cross from one to another. None: each row is one document.
            targets_BT: ids to predict, ``IGNORE_INDEX`` where there is no loss.
            cache: past positions, which the rows attend to and are appended to; excludes segments.
            last_only: whether only the logits after the last position are wanted; excludes targets.

        Returns:
            The logits_BTV or logits_B1V, or with targets the cross-entropy summed over them, an fp32
            scalar. Where ranks share rows, over those at this rank's positions.
        """
        if cache is not None and segments_BT is not None:
            raise ValueError("a cache holds one document per row: give no segments")
        if last_only and targets_BT is not None:
            raise ValueError("targets stand at every position: ask for all of them")
        sequence = self.sequence if targets_BT is not None else None
        if sequence is not None and targets_BT is not None:
            tokens_BT, positions_BT, targets_BT = map(sequence.part, (tokens_BT, positions_BT, targets_BT))
        x_BTC = self.embed_tokens(tokens_BT, positions_BT)
        states_BTC = self.decoder(x_BTC, positions_BT, segments_BT, cache, sequence=sequence)
        if last_only:  # a prompt's other logits would be its length times the vocabulary, unused
            states_BTC = states_BTC[:, -1:]
        result: Tensor = self.lm_head(states_BTC, targets_BT)
        if targets_BT is None:
            return result
        return balanced(result, self, self.shape, targets_BT, IGNORE_INDEX)
