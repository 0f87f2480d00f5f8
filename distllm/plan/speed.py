"""Seconds of one optimizer step: products, attention, element-wise work, exchanges, update.

Every time is a number of operations or bytes over a rated speed times an efficiency. The
efficiencies (`Efficiency`) are fitted once, on one published table, and are the same for every
model, layout and machine.
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
        gemm: speed of matrix products over the best one measured on the device.
        memory: bandwidth of element-wise operations over the rated one.
        attention: speed of fused attention, forward and backward, over the peak.
        overlap: share of the exchanges with other data-parallel ranks that hides behind work.
    """

    gemm: float
    memory: float
    attention: float
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
        parts = (self.gemm, self.attention, self.elementwise, self.head, self.recompute)
        exchanges = (self.tensor_exchange, self.sequence_exchange, self.expert_exchange, self.stage_exchange)
        return sum(parts) + sum(exchanges) + self.exposed + self.bubble + self.uneven + self.update

    @property
    def limit(self) -> str:
        """What takes most of the step, in words."""
        shares = {
            "matrix products": self.gemm + self.head,
            "attention": self.attention,
            "memory traffic": self.elementwise,
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
    again = {
        "none": 0.0,
        "selective": forward.elementwise,
        "full": forward.total,
    }[layout.checkpointing]
    tensor = blocks * tensor_seconds(work, layout, software, machine)
    sequence = blocks * sequence_seconds(work, layout, software, machine)
    expert = blocks * expert_seconds(work, layout, software, machine)
    stages = stage_seconds(work, layout, software, machine)
    adding = _streaming_seconds(work, layout, software.adding_bytes, machine)
    micro = blocks * (forward.total + backward.total + again) + head + adding
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
        recompute=count * blocks * again,
        tensor_exchange=count * tensor,
        sequence_exchange=count * sequence,
        expert_exchange=count * expert,
        stage_exchange=count * stages,
        exposed=sum(exchange.seconds for exchange in exchanges) - hidden,
        hidden=hidden,
        bubble=slowest * (layout.pipeline - 1) / layout.virtual_stages,
        uneven=count * (slowest - micro),
        update=_update_seconds(work, layout, software, machine, efficiency),
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
        times * _product_seconds(tokens, inner, outer, software, machine, efficiency)
        for inner, outer, times in _products(work, layout.tensor)
    )
    # under a causal mask a query sees half of the keys; backward computes five products where forward has two
    speed = efficiency.attention * machine.peak_flops * machine.attention_share
    keys = layout.seq_len * (work.causal_attentions / 2 + work.full_attentions)
    attention = 4 * tokens * keys * work.heads * work.head_dim / layout.tensor / speed
    bandwidth = efficiency.memory * machine.memory_bandwidth
    traffic = element_traffic(work, software) * tokens / layout.tensor / bandwidth
    # weights that are frozen have no gradient
    behind = 1 + work.trainable_share
    return _Pass(gemm, attention, traffic), _Pass(behind * gemm, 2.5 * attention, 1.5 * traffic)


def _products(work: Work, tensor: int) -> list[tuple[int, int, float]]:
    """Return (inner, outer, how often) of the products of one block, each over all tokens."""
    width, key_value = work.heads * work.head_dim, 2 * work.kv_heads * work.head_dim
    entering = (work.mlp_matrices - 1) * work.intermediate
    return [
        (work.hidden, (width + key_value) // tensor, work.attentions),
        (width // tensor, work.hidden, work.attentions),
        (work.hidden, entering // tensor, work.active_experts),
        (work.intermediate // tensor, work.hidden, work.active_experts),
    ]


def _product_seconds(
    rows: float, inner: int, outer: int, software: Software, machine: Machine, efficiency: Efficiency
) -> float:
    """Arithmetic, then the traffic of operands and result, which a kernel hides only in part."""
    traffic = software.element_bytes * (rows * inner + inner * outer + rows * outer)
    arithmetic = 2.0 * rows * inner * outer / (efficiency.gemm * machine.gemm_flops)
    return arithmetic if machine.hides_traffic else arithmetic + traffic / machine.memory_bandwidth


def element_traffic(work: Work, software: Software) -> float:
    """Return the bytes that element-wise operations of one block move for one token, forward.

    A norm reads and writes the stream, an addition reads two and writes one, rotation rewrites
    queries and keys; an activation reads and writes the MLP's width, and a gate reads two and
    writes one more. Fused, norms and additions share their passes, and so do activation and gate.
    """
    query, key = work.heads * work.head_dim, work.kv_heads * work.head_dim
    gated = work.mlp_matrices == 3
    if software.compiled:
        stream, mlp = 6 * work.hidden, (3 if gated else 2) * work.intermediate
    else:
        stream, mlp = 10 * work.hidden, (5 if gated else 2) * work.intermediate
    return software.element_bytes * (stream + 2 * (query + key) + mlp * work.active_experts)


def _head_seconds(
    work: Work, layout: Layout, software: Software, machine: Machine, efficiency: Efficiency
) -> float:
    """Output projection and cross-entropy of one micro-batch, forward and backward."""
    tokens, vocab = layout.tokens_per_rank, work.vocab / layout.tensor
    product = _product_seconds(tokens, work.hidden, int(vocab), software, machine, efficiency)
    passes = 3 * tokens * vocab * software.logits_bytes
    return (2 + work.trainable_share) * product + passes / (efficiency.memory * machine.memory_bandwidth)


def _streaming_seconds(work: Work, layout: Layout, size: float, machine: Machine) -> float:
    """One pass over all gradients of a rank, in large arrays, at ``size`` bytes each."""
    gradients = work.params * work.trainable_share / (layout.pipeline * layout.tensor)
    return gradients * size / (machine.stream_efficiency * machine.memory_bandwidth)


def _update_seconds(
    work: Work, layout: Layout, software: Software, machine: Machine, efficiency: Efficiency
) -> float:
    params = work.params * work.trainable_share / (layout.pipeline * layout.tensor)
    share = params / (layout.replicas if layout.zero_stage else 1)
    traffic = share * software.update_bytes
    if layout.offload == "none":
        bandwidth = machine.update_bandwidth or efficiency.memory * machine.memory_bandwidth
        return _streaming_seconds(work, layout, software.clipping_bytes, machine) + traffic / bandwidth
    if layout.offload == "mapped":
        return traffic / machine.disk_bandwidth
    # gradients down, new weights up; the update itself runs out of host memory, or out of files, after
    # gradients were written there and scaled; then new weights are converted
    moved = share * (4 + software.weight_bytes) / machine.host_bandwidth
    away = machine.disk_bandwidth if layout.offload == "disk" else machine.host_memory_bandwidth
    return moved + traffic / away + share * _AROUND_UPDATE / machine.host_memory_bandwidth
