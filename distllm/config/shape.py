"""A model's shape with every number settled: what the model code, the planner and export read.

Nothing here imports torch, so the login node can count parameters without it.
"""

from __future__ import annotations

from dataclasses import dataclass

from distllm.config.schema import ModelConfig

MLP_MULTIPLE = 64
VOCAB_MULTIPLE = 64


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Settled dimensions of a decoder. ``vocab_size`` counts the padding rows of the embedding."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_seq_len: int
    rope_theta: float
    norm_eps: float
    tie_embeddings: bool
    init_std: float

    @property
    def num_params(self) -> int:
        """Parameters of the whole model, a tied embedding counted once."""
        d, kv = self.hidden_size, self.num_kv_heads * self.head_dim
        attention = d * self.num_heads * self.head_dim * 2 + d * kv * 2
        block = attention + 3 * d * self.intermediate_size + 2 * d
        embeddings = self.vocab_size * d * (1 if self.tie_embeddings else 2)
        return self.num_layers * block + embeddings + d


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


def settle_shape(model: ModelConfig, vocab_size: int, seq_len: int) -> ModelShape:
    """Fill in what ``model`` leaves open.

    Args:
        model: the configured shape; ``hidden_size`` must be a multiple of ``num_heads``.
        vocab_size: ids of the tokenizer, padded here to a multiple of 64 for aligned matrices.
        seq_len: tokens per sample, the longest context the model is trained on.
    """
    return ModelShape(
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads or model.num_heads,
        head_dim=model.hidden_size // model.num_heads,
        intermediate_size=model.intermediate_size or round_up(8 * model.hidden_size // 3, MLP_MULTIPLE),
        vocab_size=round_up(vocab_size, VOCAB_MULTIPLE),
        max_seq_len=seq_len,
        rope_theta=model.rope_theta,
        norm_eps=model.norm_eps,
        tie_embeddings=model.tie_embeddings,
        init_std=model.init_std,
    )
