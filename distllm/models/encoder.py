"""The encoder: a bidirectional model in the manner of BERT or ModernBERT, with one head.

Shapes: B rows, T positions, C channels, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn

from distllm.config.shape import ModelShape
from distllm.data.batch import IGNORE_INDEX
from distllm.models.heads import EmbeddingHead, HeadName, MaskedLMHead, SpanHead
from distllm.models.moe import balanced
from distllm.models.stack import Stack, TokenEmbedding
from distllm.ops.cross_entropy import NO_TERMS, LossTerms


class Encoder(nn.Module):
    """Embedding, bidirectional blocks, and a head (Devlin et al. 2019; Warner et al. 2024).

    Args:
        shape: its dimensions.
        head: ``masked_lm``: logits of tokens; ``span``: logits of an answer's start and end;
            ``embedding``: unit vectors of texts.
        terms: what the loss adds to the cross-entropy in training mode.
    """

    def __init__(self, shape: ModelShape, head: HeadName = "masked_lm", terms: LossTerms = NO_TERMS) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = TokenEmbedding(shape)
        self.encoder = Stack(shape, shape.num_layers, causal=False)
        self.head: MaskedLMHead | SpanHead | EmbeddingHead
        if head == "masked_lm":
            self.head = MaskedLMHead(shape, terms)
        else:
            self.head = SpanHead(shape) if head == "span" else EmbeddingHead(shape)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Share the embedding with the output projection, if there is one and the shape says so."""
        if self.shape.tie_embeddings and isinstance(self.head, MaskedLMHead):
            self.head.lm_head.weight = self.embed_tokens.weight

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor,
        segments_BT: Tensor | None = None,
        targets_BT: Tensor | None = None,
        types_BT: Tensor | None = None,
    ) -> Tensor:
        """Read each document from both sides.

        Args:
            tokens_BT: input ids.
            positions_BT: place of each token in its document.
            segments_BT: document of each token, never decreasing along a row; attention does not
                cross from one to another. None: each row is one document.
            targets_BT: ids to predict, ``IGNORE_INDEX`` where there is no loss; ``masked_lm`` only.
            types_BT: the type of each token, below ``token_types``; None: 0.

        Returns:
            ``masked_lm``: logits_BTV, or with targets the cross-entropy summed over them.
            ``span``: logits_BT2. ``embedding``: vectors_BC of the text each row begins with.
        """
        x_BTC = self.embed_tokens(tokens_BT, positions_BT, types_BT)
        result: Tensor = self.head(self.encoder(x_BTC, positions_BT, segments_BT), segments_BT, targets_BT)
        if targets_BT is None:
            return result
        return balanced(result, self, self.shape, targets_BT, IGNORE_INDEX)
