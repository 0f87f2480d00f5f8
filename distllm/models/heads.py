"""The heads on top of a stack: logits or their loss, answer spans, or the vector of a text.

Each head owns its weights, or shares one with the embedding. In both cases a weight is used inside
the module that registers it, as ZeRO-3 requires for gathering.

Shapes: B rows, T positions, C channels, V vocabulary, L labels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distllm.config.shape import ModelShape
from distllm.models.layers import Norm
from distllm.ops.cross_entropy import NO_TERMS, LossTerms, linear_cross_entropy, soft_cap
from distllm.ops.mlp import activate

HeadName = Literal["masked_lm", "span", "embedding"]
_HEADS: dict[str, HeadName] = {"extractive_qa": "span", "contrastive": "embedding"}


def head_of(task: str) -> HeadName:
    """Return the name of the head of an encoder for ``task``."""
    return _HEADS.get(task, "masked_lm")


class Head(nn.Linear):
    """The output projection, and the loss that is computed without holding its output.

    Args:
        shape: the model's.
        bias: whether logits add a bias.
        terms: what the loss adds to the cross-entropy in training mode.
    """

    def __init__(self, shape: ModelShape, *, bias: bool = False, terms: LossTerms = NO_TERMS) -> None:
        super().__init__(shape.hidden_size, shape.vocab_size, bias=bias)
        self.scale = shape.logit_scale
        self.softcap = shape.logit_softcap
        self.terms = terms

    def forward(self, x_BTC: Tensor, targets_BT: Tensor | None = None) -> Tensor:
        """Return logits_BTV or, given targets, their summed cross-entropy."""
        if self.scale != 1.0:
            x_BTC = x_BTC * self.scale
        if targets_BT is None:
            return soft_cap(super().forward(x_BTC), self.softcap)
        return linear_cross_entropy(
            x_BTC.flatten(0, 1),
            self.weight,
            targets_BT.flatten(),
            self.bias,
            softcap=self.softcap,
            terms=self.terms if self.training else NO_TERMS,
        )


class MaskedLMHead(nn.Module):
    """BERT's head: a dense layer, its activation and a norm before the output projection."""

    def __init__(self, shape: ModelShape, terms: LossTerms = NO_TERMS) -> None:
        super().__init__()
        self.activation = shape.activation
        self.dense = nn.Linear(shape.hidden_size, shape.hidden_size, bias=shape.mlp_bias)
        self.norm = Norm(shape)
        self.lm_head = Head(shape, bias=True, terms=terms)

    def forward(self, x_BTC: Tensor, segments_BT: Tensor | None, targets_BT: Tensor | None = None) -> Tensor:
        """Return logits_BTV or, given targets, their summed cross-entropy."""
        x_BTC = self.norm(activate(self.dense(x_BTC), self.activation))
        result: Tensor = self.lm_head(x_BTC, targets_BT)
        return result


class SpanHead(nn.Linear):
    """The logits of each position being the first or the last of an answer (Devlin et al. 2019)."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__(shape.hidden_size, 2)

    def forward(  # type: ignore[override]  # the signature of an encoder's heads
        self, x_BTC: Tensor, segments_BT: Tensor | None, targets_BT: Tensor | None = None
    ) -> Tensor:
        """Return logits_BT2 of starts and ends; the task computes the loss."""
        if targets_BT is not None:
            raise ValueError("answer spans are no targets of single positions: the task computes their loss")
        return super().forward(x_BTC)


class EmbeddingHead(nn.Module):
    """One unit vector for each row: the mean of its text, or its first position."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.pooling = shape.pooling

    def forward(self, x_BTC: Tensor, segments_BT: Tensor | None, targets_BT: Tensor | None = None) -> Tensor:
        """Return vectors_BC of the text that each row begins with; what has another segment is padding."""
        if targets_BT is not None:
            raise ValueError("vectors have no targets: the task computes their loss")
        pooled_BC = x_BTC[:, 0] if self.pooling == "cls" else mean_of_text(x_BTC, segments_BT)
        return F.normalize(pooled_BC, dim=-1)


def mean_of_text(x_BTC: Tensor, segments_BT: Tensor | None) -> Tensor:
    """Return mean_BC of the text that each row begins with."""
    if segments_BT is None:
        return x_BTC.mean(dim=1)
    own_BT1 = (segments_BT == segments_BT[:, :1])[..., None]
    summed_BC = torch.where(own_BT1, x_BTC, 0.0).sum(dim=1)
    return summed_BC / own_BT1.sum(dim=1).to(x_BTC.dtype)
