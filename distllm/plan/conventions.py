"""Named conventions for counting the floating-point operations of training.

A utilisation means nothing without its convention: on long contexts they differ by a factor of two.
"""

from __future__ import annotations

from collections.abc import Callable

from distllm.plan.work import Work


def _products(work: Work, weights: float) -> float:
    """FLOPs per token of ``weights``: two forward, two for what they multiply, two where they learn."""
    return (4.0 + 2.0 * work.trainable_share) * weights


def _attention(work: Work, seq_len: int, causal_share: float) -> float:
    """FLOPs per token, forward and backward, where a causal mask leaves ``causal_share`` of the keys."""
    keys = seq_len * (work.causal_attentions * causal_share + work.full_attentions)
    return 12.0 * work.layers * work.heads * work.head_dim * keys


def causal(work: Work, seq_len: int) -> float:
    """6N without the input embedding, and the half of attention a causal mask leaves; 4N where frozen."""
    return _products(work, work.multiplied_params) + _attention(work, seq_len, (seq_len + 1) / (2 * seq_len))


def full_square(work: Work, seq_len: int) -> float:
    """6N without the input embedding, and all of attention (Megatron-LM to r0.8, torchtitan)."""
    return _products(work, work.multiplied_params) + _attention(work, seq_len, 1.0)


def all_params(work: Work, seq_len: int) -> float:
    """6N with every parameter, and all of attention (PaLM's appendix B, llm-foundry, nanotron, nanoGPT)."""
    return _products(work, work.params) + _attention(work, seq_len, 1.0)


CONVENTIONS: dict[str, Callable[[Work, int], float]] = {
    "causal": causal,
    "full_square": full_square,
    "all_params": all_params,
}
