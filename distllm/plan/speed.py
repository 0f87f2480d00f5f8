"""Seconds of one optimizer step: products, attention, element-wise work, exchanges, update.

Every time is a number of operations or bytes over a speed that was measured alone. What training
reaches of it (`Efficiency`) is fitted once, on one published table, and is the same for every model,
layout and machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from distllm.plan.exchanges import (
    data_exchanges,
    expert_seconds,
    sequence_seconds,
    stage_seconds,
    tensor_seconds,
)
from distllm.plan.layout import Layout, Software
from distllm.plan.machine import Machine
from distllm.plan.stages import stages_of
from distllm.plan.work import Work

# Bytes of host memory that DeepSpeed moves for an offloaded weight besides the update: its gradient
# arrives in fp32 (4), is scaled where it lies (8), and the new weight is converted (4 + 2).
_AROUND_UPDATE = 18


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What training reaches of what hardware can do.

    Attributes:
        gemm: arithmetic of matrix products over the best product measured on the device.
        operands: bandwidth at which operands and results of products seem to move, over the rated one: what
            a kernel's beginning and end do not hide behind arithmetic.
        overlap: share of the exchanges with other data-parallel ranks that hides behind work.
    """

    gemm: float
    operands: float
    overlap: float


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step by where they go; ``exposed`` is the part of exchanges nothing hides, ``uneven``
    what all wait for a pipeline's longest stage.
    """

    gemm: float
    attention: float
    elementwise: float
    head: float
    reference: float
    recompute: float
    tensor_exchange: float
    sequence_exchange: float
    expert_exchange: float
    stage_exchange: float
    exposed: float
    hidden: float
    bubble: float
    uneven: float
    update: float

    @property
    def total(self) -> float:
        """All seconds of the step."""
        parts = (self.gemm, self.attention, self.elementwise, self.head, self.reference, self.recompute)
        exchanges = (self.tensor_exchange, self.sequence_exchange, self.expert_exchange, self.stage_exchange)
        return sum(parts) + sum(exchanges) + self.exposed + self.bubble + self.uneven + self.update

    @property
    def limit(self) -> str:
        """What takes most of the step, in words."""
        shares = {
            "matrix products": self.gemm + self.head,
            "attention": self.attention,
            "memory traffic": self.elementwise,
            "the reference model": self.reference,
            "recomputation": self.recompute,
            "exchanges between ranks": self.exposed
            + self.tensor_exchange
            + self.sequence_exchange
            + self.stage_exchange,
            "tokens on their way to experts": self.expert_exchange,
            "the pipeline's bubble": self.bubble,
            "the pipeline's longest stage": self.uneven,
            "the optimizer": self.update,
        }
        return max(shares, key=lambda name: shares[name])


@dataclass(frozen=True, slots=True)
class _Pass:
    """Seconds of one forward or backward through one block for one micro-batch."""

    gemm: float
    attention: float
    elementwise: float

    @property
    def total(self) -> float:
        return self.gemm + self.attention + self.elementwise


def step_time(
    work: Work, layout: Layout, software: Software, machine: Machine, efficiency: Efficiency
) -> StepTime:
    """Return where the seconds of one step go."""
    forward, backward = _block_passes(work, layout, software, machine, efficiency)
    blocks = work.layers / layout.pipeline
    head = _head_seconds(work, layout, software, machine, efficiency) / layout.pipeline
    reference = 0.0
    if software.reference_bytes:
        reference = blocks * forward.total + head / (2 + work.trainable_share)
    again = {
        "none": 0.0,
        "selective": forward.elementwise + (_half_share(work) * forward.gemm if software.keeps_half else 0.0),
        "full": forward.total,
    }[layout.checkpointing]
    again += (software.forward_passes - 1) * forward.total
    tensor = blocks * tensor_seconds(work, layout, software, machine)
    sequence = blocks * sequence_seconds(work, layout, software, machine)
    expert = blocks * expert_seconds(work, layout, software, machine)
    stages = stage_seconds(work, layout, software, machine)
    adding = _streaming_seconds(work, layout, software.adding_bytes, machine)
    micro = blocks * (forward.total + backward.total + again) + head + reference + adding
    micro += tensor + sequence + expert + stages
    count = layout.accumulation
    slowest = _slowest_stage(work, layout, software, micro, head * layout.pipeline)
    exchanges = data_exchanges(work, layout, software, machine)
    overlap = 1.0 if software.overlaps_data else efficiency.overlap
    # Their windows overlap, and the links carry one after another: no second of work hides two of them.
    hidden = sum(min(overlap * exchange.seconds, exchange.window * micro) for exchange in exchanges)
    hidden = min(hidden, count * micro)
    return StepTime(
        gemm=count * blocks * (forward.gemm + backward.gemm),
        attention=count * blocks * (forward.attention + backward.attention),
        elementwise=count * (blocks * (forward.elementwise + backward.elementwise) + adding),
        head=count * head,
        reference=count * reference,
        recompute=count * blocks * again,
        tensor_exchange=count * tensor,
        sequence_exchange=count * sequence,
        expert_exchange=count * expert,
        stage_exchange=count * stages,
        exposed=sum(exchange.seconds for exchange in exchanges) - hidden,
        hidden=hidden,
        bubble=slowest * (layout.pipeline - 1) / layout.virtual_stages,
        uneven=count * (slowest - micro),
        update=_update_seconds(work, layout, software, machine),
    )


def _slowest_stage(work: Work, layout: Layout, software: Software, micro: float, head: float) -> float:
    """Return the seconds of a micro-batch in the slowest stage, given those in an average one."""
    if layout.pipeline == 1:
        return micro
    block = (micro * layout.pipeline - head) / work.layers
    stages = stages_of(work, layout, software)
    return max(stage.blocks * block + stage.last * head for stage in stages)


def _block_passes(
    work: Work, layout: Layout, software: Software, machine: Machine, efficiency: Efficiency
) -> tuple[_Pass, _Pass]:
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
    return _Pass(gemm, attention, traffic), _Pass(behind * gemm, 2.5 * attention, 1.5 * traffic)


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


def _half_share(work: Work) -> float:
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
    mlp = 3 if gated and (software.compiled or software.mlp_in_place) else 5 if gated else 2
    if software.compiled:
        stream, rotation = 6.0, 2.0
    moved = stream * work.hidden + rotation * (query + key) + mlp * work.intermediate * work.active_experts
    return software.element_bytes * moved


def _head_seconds(
    work: Work, layout: Layout, software: Software, machine: Machine, efficiency: Efficiency
) -> float:
    """Output projection and cross-entropy of one micro-batch, forward and backward."""
    tokens, vocab = layout.tokens_per_rank, work.vocab / layout.tensor
    product = _product_seconds(tokens, work.hidden, int(vocab), software, machine, efficiency)
    passes = tokens * vocab * (software.logits_traffic or 3 * software.logits_bytes)
    return (2 + work.trainable_share) * product + passes / machine.stream_bandwidth


def _streaming_seconds(work: Work, layout: Layout, size: float, machine: Machine) -> float:
    """One pass over all gradients of a rank, in large arrays, at ``size`` bytes each."""
    gradients = work.params * work.trainable_share / (layout.pipeline * layout.tensor)
    return gradients * size / machine.stream_bandwidth


def _update_seconds(work: Work, layout: Layout, software: Software, machine: Machine) -> float:
    params = work.params * work.trainable_share / (layout.pipeline * layout.tensor)
    share = params / (layout.replicas if layout.zero_stage else 1)
    traffic = share * software.update_bytes
    if layout.offload == "none":
        bandwidth = machine.update_bandwidth or machine.stream_bandwidth
        return _streaming_seconds(work, layout, software.clipping_bytes, machine) + traffic / bandwidth
    if layout.offload == "mapped":
        return traffic / machine.disk_bandwidth
    # gradients down, new weights up; the update itself runs out of host memory, or out of files, after
    # gradients were written there and scaled; then new weights are converted
    moved = share * (4 + software.weight_bytes) / machine.host_bandwidth
    away = machine.disk_bandwidth if layout.offload == "disk" else machine.host_memory_bandwidth
    return moved + traffic / away + share * _AROUND_UPDATE / machine.host_memory_bandwidth
