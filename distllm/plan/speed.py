"""Seconds of one optimizer step: products, attention, element-wise work, exchanges, update.

Every time is a number of operations or bytes over a rated speed times an efficiency. The
efficiencies (`Efficiency`) are fitted once, on one published table, and are the same for every
model, layout and machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from distllm.plan.comms import Group, exchange_seconds, gather_seconds, reduce_seconds
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
    exposed: float
    hidden: float
    bubble: float
    uneven: float
    update: float

    @property
    def total(self) -> float:
        """All seconds of the step."""
        parts = (self.gemm, self.attention, self.elementwise, self.head, self.recompute)
        exchanges = (self.tensor_exchange, self.sequence_exchange, self.expert_exchange, self.exposed)
        return sum(parts) + sum(exchanges) + self.bubble + self.uneven + self.update

    @property
    def limit(self) -> str:
        """What takes most of the step, in words."""
        shares = {
            "matrix products": self.gemm + self.head,
            "attention": self.attention,
            "memory traffic": self.elementwise,
            "recomputation": self.recompute,
            "exchanges between ranks": self.exposed + self.tensor_exchange + self.sequence_exchange,
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
    tensor = blocks * _tensor_seconds(work, layout, software, machine)
    sequence = blocks * _sequence_seconds(work, layout, software, machine)
    expert = blocks * _expert_seconds(work, layout, software, machine)
    micro = blocks * (forward.total + backward.total + again) + head + tensor + sequence + expert
    count = layout.accumulation
    slowest = _slowest_stage(work, layout, software, micro, head * layout.pipeline)
    exchanges = _data_exchanges(work, layout, software, machine)
    overlap = 1.0 if software.overlaps_data else efficiency.overlap
    # Their windows overlap, and the links carry one after another: no second of work hides two of them.
    hidden = min(sum(min(overlap * seconds, window * micro) for seconds, window in exchanges), count * micro)
    return StepTime(
        gemm=count * blocks * (forward.gemm + backward.gemm),
        attention=count * blocks * (forward.attention + backward.attention),
        elementwise=count * blocks * (forward.elementwise + backward.elementwise),
        head=count * head,
        recompute=count * blocks * again,
        tensor_exchange=count * tensor,
        sequence_exchange=count * sequence,
        expert_exchange=count * expert,
        exposed=sum(seconds for seconds, _ in exchanges) - hidden,
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
    return _Pass(gemm, attention, traffic), _Pass(2 * gemm, 2.5 * attention, 1.5 * traffic)


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
    return 3 * product + passes / (efficiency.memory * machine.memory_bandwidth)


def _tensor_seconds(work: Work, layout: Layout, software: Software, machine: Machine) -> float:
    """Exchanges of one block for one micro-batch: two all-reduces forward, two backward."""
    if layout.tensor == 1:
        return 0.0
    group = Group.strided(layout.tensor, 1, machine)
    own = layout.tokens_per_rank * work.hidden * software.element_bytes
    times = 6 if layout.checkpointing == "full" else 4
    exposed = 0.5 if software.overlaps_tensor else 1.0
    return exposed * times * reduce_seconds(own, group, machine)


def _sequence_seconds(work: Work, layout: Layout, software: Software, machine: Machine) -> float:
    """Ulysses: four all-to-alls of one block forward, four backward (Jacobs et al. 2023)."""
    if layout.sequence == 1:
        return 0.0
    group = Group.strided(layout.sequence, layout.tensor, machine)
    elements = layout.tokens_per_rank * work.head_dim * software.element_bytes
    times = 3 if layout.checkpointing == "full" else 2
    key_value = max(work.kv_heads, layout.sequence)  # ranks that share a head get a copy each
    widths = (work.heads, key_value, key_value, work.heads)
    return times * sum(exchange_seconds(elements * width, group, machine) for width in widths)


def _expert_seconds(work: Work, layout: Layout, software: Software, machine: Machine) -> float:
    """Two all-to-alls of one block forward, two backward: tokens travel once for each of their experts."""
    if layout.expert == 1:
        return 0.0
    group = Group.strided(layout.expert, layout.tensor, machine)
    own = layout.tokens_per_rank * work.active_experts * work.hidden * software.element_bytes
    times = 6 if layout.checkpointing == "full" else 4
    return times * exchange_seconds(own, group, machine)


def _data_exchanges(
    work: Work, layout: Layout, software: Software, machine: Machine
) -> list[tuple[float, float]]:
    """Return (seconds, micro-batches of work they may hide behind) of exchanges of one step."""
    if layout.expert > 1:
        return [
            *_rest_exchanges(work, layout, software, machine),
            *_expert_sums(work, layout, software, machine),
        ]
    return _rest_exchanges(work, layout, software, machine)


def _expert_sums(
    work: Work, layout: Layout, software: Software, machine: Machine
) -> list[tuple[float, float]]:
    """Gradients, then weights, of a rank's experts go to and fro among those with the same, once a step."""
    own = work.layers * work.expert_params / (layout.pipeline * layout.tensor * layout.expert)
    equals = Group.strided(layout.replicas // layout.expert, layout.tensor * layout.expert, machine)
    if layout.zero_stage == 0:
        return [(reduce_seconds(own * software.reduced_bytes, equals, machine), 0)]
    sizes = (software.reduced_bytes, software.weight_bytes)
    return [(gather_seconds(own * size, equals, machine), 0) for size in sizes]


def _rest_exchanges(
    work: Work, layout: Layout, software: Software, machine: Machine
) -> list[tuple[float, float]]:
    """Exchanges of all weights, or of all but experts where ranks hold different ones."""
    elsewhere = work.layers * work.expert_params if layout.expert > 1 else 0.0
    params = (work.params - elsewhere) / (layout.pipeline * layout.tensor)
    group = Group.strided(layout.replicas, layout.tensor, machine)
    if group.size == 1:
        return []
    weights, gradients = params * software.weight_bytes, params * software.reduced_bytes
    count = layout.accumulation
    if layout.zero_stage == 3:
        near = Group.strided(layout.hpz, layout.tensor, machine) if layout.hpz > 1 else group
        # one exchange for each block: latencies add up
        calls = work.layers / layout.pipeline
        first = calls * gather_seconds(weights / calls, group, machine)
        again = (software.gathers - 1) * calls * gather_seconds(weights / calls, near, machine)
        scatter = calls * gather_seconds(gradients / calls, group, machine)
        return [(count * (first + again), count), (count * scatter, count * 2 / 3)]
    if layout.zero_stage == 2:
        reduces = count if software.reduces_each_pass else 1
        seconds = reduces * gather_seconds(gradients, group, machine)
        return [(seconds, reduces * 2 / 3), (gather_seconds(weights, group, machine), 0)]
    if layout.zero_stage == 1:
        return [
            (gather_seconds(gradients, group, machine), 2 / 3),
            (gather_seconds(weights, group, machine), 1 / 3 if software.overlaps_data else 0),
        ]
    return [(reduce_seconds(gradients, group, machine), 2 / 3)]


def _update_seconds(
    work: Work, layout: Layout, software: Software, machine: Machine, efficiency: Efficiency
) -> float:
    params = work.params / (layout.pipeline * layout.tensor)
    share = params / (layout.replicas if layout.zero_stage else 1)
    traffic = share * software.update_bytes
    if layout.offload == "none":
        bandwidth = machine.update_bandwidth or efficiency.memory * machine.memory_bandwidth
        return traffic / bandwidth
    if layout.offload == "mapped":
        return traffic / machine.disk_bandwidth
    # gradients down, new weights up; the update itself runs out of host memory, or out of files, after
    # gradients were written there and scaled; then new weights are converted
    moved = share * (4 + software.weight_bytes) / machine.host_bandwidth
    away = machine.disk_bandwidth if layout.offload == "disk" else machine.host_memory_bandwidth
    return moved + traffic / away + share * _AROUND_UPDATE / machine.host_memory_bandwidth
