"""Seconds of one block and of the output projection for one micro-batch: products, attention, traffic.

Each is a number of operations or bytes over a speed that was measured alone, times what training reaches
of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from distllm.plan.layout import Layout, Software
from distllm.plan.machine import Efficiency, Machine
from distllm.plan.work import Work


@dataclass(frozen=True, slots=True)
class Pass:
    """Seconds of one forward or backward through one block for one micro-batch."""

    gemm: float
    attention: float
    elementwise: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.gemm + self.attention + self.elementwise


def block_passes(
    work: Work, layout: Layout, software: Software, machine: Machine, efficiency: Efficiency
) -> tuple[Pass, Pass]:
    """Return the seconds of one block's forward and of its backward pass."""
    tokens = layout.tokens_per_rank
    gemm = sum(
        times * _product_seconds(rows, inner, outer, software, machine, efficiency)
        for rows, inner, outer, times in _products(work, layout)
    )
    # under a causal mask a query sees half of the keys; backward computes five products where forward has two
    speed = _attention_flops(work.head_dim, layout.seq_len, machine)
    keys = layout.seq_len * (work.causal_attentions / 2 + work.full_attentions)
    attention = 4 * tokens * keys * work.heads * work.head_dim / layout.tensor / speed
    traffic = element_traffic(work, software) * tokens / layout.tensor / machine.stream_bandwidth
    # weights that are frozen have no gradient
    behind = 1 + work.trainable_share
    sums = _bias_traffic(work, software) * tokens / layout.tensor / machine.stream_bandwidth
    return Pass(gemm, attention, traffic), Pass(behind * gemm, 2.5 * attention, 1.5 * traffic + sums)


def _attention_flops(head_dim: int, seq_len: int, machine: Machine) -> float:
    """Return the speed of fused attention alone, forward and backward, counted as causal.

    Short rows waste more of the blocks that the mask cuts, narrow heads compute more exponentials for
    each product. The two halving points describe the twelve causal figures of FlashAttention-2 on an
    H100 (Dao 2023, figure 7) to 3 %.
    """
    rows = seq_len / (seq_len + machine.attention_half_length)
    heads = (1 + machine.attention_half_width / 128) / (1 + machine.attention_half_width / head_dim)
    return machine.long_attention_flops * rows * heads


def _products(work: Work, layout: Layout) -> list[tuple[float, int, int, float]]:
    """Return (rows, inner, outer, how often) of the products of one block.

    Each expert that a rank holds multiplies the tokens it is sent: with many experts those are few.
    """
    width, key_value = work.heads * work.head_dim, 2 * work.kv_heads * work.head_dim
    entering, tensor, tokens = (
        (work.mlp_matrices - 1) * work.intermediate,
        layout.tensor,
        layout.tokens_per_rank,
    )
    held = work.experts / layout.expert
    routed = tokens * work.active_experts / held
    return [
        (tokens, work.hidden, (width + key_value) // tensor, work.attentions),
        (tokens, width // tensor, work.hidden, work.attentions),
        (routed, work.hidden, entering // tensor, held),
        (routed, work.intermediate // tensor, work.hidden, held),
    ]


def half_share(work: Work) -> float:
    """Return the share of a block's arithmetic in every second product: keys, output, the MLP's way up."""
    again = work.hidden * (work.kv_heads + work.heads) * work.head_dim + work.hidden * work.intermediate
    return again / (work.attention_params + work.mlp_params)


def _product_seconds(
    rows: float, inner: int, outer: int, software: Software, machine: Machine, efficiency: Efficiency
) -> float:
    """Arithmetic, then the traffic of operands and result, which a kernel hides only in part.

    A product of few rows, or of few columns for each of a tensor's ranks, has little arithmetic for it.
    """
    traffic = software.element_bytes * (rows * inner + inner * outer + rows * outer)
    arithmetic = 2.0 * rows * inner * outer / (efficiency.gemm * machine.gemm_flops)
    if machine.hides_traffic:
        return arithmetic
    return arithmetic + traffic / (efficiency.operands * machine.memory_bandwidth)


def element_traffic(work: Work, software: Software) -> float:
    """Return the bytes that element-wise operations of one block move for one token, forward.

    A norm reads and writes the stream (more often where it is several kernels), an addition reads two and
    writes one, rotation rewrites queries and keys; an activation reads and writes the MLP's width, and a
    gate reads two and writes one more. Fused, norms and additions share their passes, and so do activation
    and gate.
    """
    query, key = work.heads * work.head_dim, work.kv_heads * work.head_dim
    gated = work.mlp_matrices == 3
    stream, rotation = 6 + 2 * software.norm_passes, software.rotation_passes
    joined = software.compiled or software.fused or software.mlp_in_place
    mlp = 2 if not gated else 3 if joined else 5
    if software.compiled:
        stream, rotation = 6.0, min(rotation, 2.0)
    moved = stream * work.hidden + rotation * (query + key) + mlp * work.intermediate * work.active_experts
    return software.element_bytes * moved


def _bias_traffic(work: Work, software: Software) -> float:
    """Return the bytes that sums of a block's bias gradients read for one token: what products put out."""
    if not software.bias_sums:
        return 0.0
    attention = work.attentions * ((work.heads + 2 * work.kv_heads) * work.head_dim + work.hidden)
    mlp = work.active_experts * ((work.mlp_matrices - 1) * work.intermediate + work.hidden)
    return software.element_bytes * (attention + mlp)


def head_seconds(
    work: Work, layout: Layout, software: Software, machine: Machine, efficiency: Efficiency
) -> float:
    """Output projection and cross-entropy of one micro-batch, forward and backward."""
    tokens, vocab = layout.tokens_per_rank, work.vocab / layout.tensor
    product = _product_seconds(tokens, work.hidden, int(vocab), software, machine, efficiency)
    passes = tokens * vocab * (software.logits_traffic or 3 * software.logits_bytes)
    return (2 + work.trainable_share) * product + passes / machine.stream_bandwidth
