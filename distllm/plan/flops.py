"""How much arithmetic a token of training costs, under one named convention."""

from __future__ import annotations

from distllm.config.shape import ModelShape

CONVENTION = "6N + causal attention"


def matmul_params(shape: ModelShape) -> int:
    """Return N: the weights that multiply every token.

    These are the matrices of the blocks and of the output projection. The input embedding is looked
    up, not multiplied, so it counts only where it is also the (tied) output projection; the scales
    of norms are left out. An encoder-decoder is counted as if source and target were equally long.
    """
    width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    attention = shape.hidden_size * (2 * width + 2 * kv_width)
    mlp = (2 + shape.gated) * shape.hidden_size * shape.intermediate_size
    if shape.num_experts:
        mlp = shape.experts_per_token * mlp + shape.num_experts * shape.hidden_size
    head = shape.vocab_size * shape.hidden_size
    if shape.family == "encoder":
        head += shape.hidden_size**2
    if shape.family == "encoder_decoder":
        return shape.num_encoder_layers * (attention + mlp) + shape.num_layers * (2 * attention + mlp) + head
    return shape.num_layers * (attention + mlp) + head


def flops_per_token(shape: ModelShape, seq_len: int, trainable_share: float = 1.0) -> float:
    """Return the FLOPs of forward and backward for one token of a sequence of ``seq_len``.

    Convention `CONVENTION` (Kaplan et al. 2020, app. B; Chowdhery et al. 2022, app. B, halved for
    causality): two FLOPs per weight forward and four backward, and for attention two products
    with the (seq_len + 1) / 2 keys a token sees on average (all seq_len where attention is not
    causal; windows are not deducted). Work repeated by recomputation is not
    counted, and work saved at document borders is not deducted. Of weights that are frozen, all but
    ``trainable_share``, backward computes no gradient: two FLOPs less.
    """
    whole = 4 * shape.num_heads * shape.head_dim * seq_len
    causal = 4 * shape.num_heads * shape.head_dim * (seq_len + 1) / 2
    if shape.family == "encoder_decoder":
        attention_forward = shape.num_encoder_layers * whole + shape.num_layers * (causal + whole)
    else:
        attention_forward = shape.num_layers * (whole if shape.family == "encoder" else causal)
    return (4.0 + 2.0 * trainable_share) * matmul_params(shape) + 3.0 * attention_forward
