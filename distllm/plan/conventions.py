"""The ways in which others count the floating-point operations of training, each by its name.

A utilisation means nothing without its convention: on long contexts they differ by a factor of two.
"""

from __future__ import annotations

from collections.abc import Callable

from distllm.plan.work import Work


def _attention(work: Work, seq_len: int, causal_share: float) -> float:
    """FLOPs per token, forward and backward, where a causal mask leaves ``causal_share`` of the keys."""
    keys = seq_len * (work.causal_attentions * causal_share + work.full_attentions)
    return 12.0 * work.layers * work.heads * work.head_dim * keys


def causal(work: Work, seq_len: int) -> float:
    """6N without the input embedding, and the half of attention that a causal mask leaves."""
    return 6.0 * work.multiplied_params + _attention(work, seq_len, (seq_len + 1) / (2 * seq_len))


def full_square(work: Work, seq_len: int) -> float:
    """6N without the input embedding, and all of attention (nanotron, Megatron-LM to r0.8, torchtitan)."""
    return 6.0 * work.multiplied_params + _attention(work, seq_len, 1.0)


def all_params(work: Work, seq_len: int) -> float:
    """6N with every parameter, and all of attention (PaLM's appendix B, llm-foundry, nanoGPT)."""
    return 6.0 * work.params + _attention(work, seq_len, 1.0)


CONVENTIONS: dict[str, Callable[[Work, int], float]] = {
    "causal": causal,
    "full_square": full_square,
    "all_params": all_params,
}
