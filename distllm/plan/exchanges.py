"""Seconds of a step that exchanges between ranks take, and the work that may hide them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from distllm.plan.comms import Group, exchange_seconds, gather_seconds, reduce_seconds, send_seconds
from distllm.plan.layout import Layout, Software
from distllm.plan.machine import Machine
from distllm.plan.work import Work


@dataclass(frozen=True, slots=True)
class Exchange:
    """Seconds of exchanges in one step, and the micro-batches of work that may hide them."""

    seconds: float
    window: float = 0.0


def tensor_seconds(work: Work, layout: Layout, software: Software, machine: Machine) -> float:
    """Seconds of one block's exchanges for one micro-batch, hidden or not.

    Two scatters and two gathers forward, as many backward (Megatron: two all-reduces each way).
    """
    if layout.tensor == 1:
        return 0.0
    group = Group.strided(layout.tensor, 1, machine)
    own = layout.tokens_per_rank * work.hidden * software.element_bytes
    times = 12 if layout.checkpointing == "full" else 8
    return times * gather_seconds(own, group, machine)


def sequence_seconds(work: Work, layout: Layout, software: Software, machine: Machine) -> float:
    """Ulysses: four all-to-alls of one block forward, four backward (Jacobs et al. 2023)."""
    if layout.sequence == 1:
        return 0.0
    group = Group.strided(layout.sequence, layout.tensor, machine)
    elements = layout.tokens_per_rank * work.head_dim * software.element_bytes
    times = 3 if layout.checkpointing == "full" else 2
    key_value = max(work.kv_heads, layout.sequence)  # ranks that share a head get a copy each
    widths = (work.heads, key_value, key_value, work.heads)
    return times * sum(exchange_seconds(elements * width, group, machine) for width in widths)


def expert_seconds(work: Work, layout: Layout, software: Software, machine: Machine) -> float:
    """Two all-to-alls of one block forward, two backward: tokens travel once for each of their experts."""
    if layout.expert == 1:
        return 0.0
    group = Group.strided(layout.expert, layout.tensor, machine)
    own = layout.tokens_per_rank * work.active_experts * work.hidden * software.element_bytes
    times = 6 if layout.checkpointing == "full" else 4
    return times * exchange_seconds(own, group, machine)


def message_seconds(work: Work, layout: Layout, software: Software, machine: Machine) -> float:
    """Seconds of one message between stages: activations of a micro-batch, or their gradients.

    Stages are the outermost dimension of ranks: all wait for those whose neighbour is in another node.
    """
    if layout.pipeline == 1:
        return 0.0
    own = layout.tokens_per_rank * work.hidden * software.element_bytes / layout.tensor
    return send_seconds(own, layout.ranks > machine.per_node, machine)


def data_exchanges(work: Work, layout: Layout, software: Software, machine: Machine) -> list[Exchange]:
    """Return the exchanges of weights and gradients, also of an embedding that two stages hold."""
    found = _rest_exchanges(work, layout, software, machine)
    if layout.expert > 1:
        found += _expert_sums(work, layout, software, machine)
    if layout.pipeline > 1 and work.tied:
        found.append(_tied_sum(work, layout, software, machine))
    return found


def sent_bytes(work: Work, layout: Layout, software: Software, machine: Machine) -> dict[str, float]:
    """Return the bytes that a rank sends in one step, by what they are.

    These are the seconds that the same exchanges take by rings on links of one byte a second, without
    latency.
    """
    counter = replace(
        machine,
        per_node=layout.ranks,
        local_bandwidth=1.0,
        link_efficiency=1.0,
        base_seconds=0.0,
        local_seconds=0.0,
        network_seconds=0.0,
        launch_seconds=0.0,
    )
    data = data_exchanges(work, layout, software, counter)
    passes = layout.accumulation * work.layers / layout.pipeline
    return {
        "weights, grads": sum(exchange.seconds for exchange in data),
        "sequence": passes * sequence_seconds(work, layout, software, counter),
        "experts": passes * expert_seconds(work, layout, software, counter),
    }


def _tied_sum(work: Work, layout: Layout, software: Software, machine: Machine) -> Exchange:
    """Gradients of an embedding that is also the output projection: the first stage's and the last one's."""
    own = work.vocab * work.hidden / layout.tensor * software.reduced_bytes
    together = 2 if layout.ranks <= machine.per_node else 1
    return Exchange(reduce_seconds(own, Group(2, together), machine))


def _expert_sums(work: Work, layout: Layout, software: Software, machine: Machine) -> list[Exchange]:
    """Once a step, ranks with the same experts sum their gradients; from stage 1 on they gather weights."""
    own = work.layers * work.expert_params / (layout.pipeline * layout.tensor * layout.expert)
    equals = Group.strided(layout.replicas // layout.expert, layout.tensor * layout.expert, machine)
    if layout.zero_stage == 0:
        return [Exchange(reduce_seconds(own * software.reduced_bytes, equals, machine))]
    sizes = (software.reduced_bytes, software.weight_bytes)
    return [Exchange(gather_seconds(own * size, equals, machine)) for size in sizes]


def _rest_exchanges(work: Work, layout: Layout, software: Software, machine: Machine) -> list[Exchange]:
    """Exchanges of all weights, or of all but experts where ranks hold different ones."""
    elsewhere = work.layers * work.expert_params if layout.expert > 1 else 0.0
    params = (work.params - elsewhere) / (layout.pipeline * layout.tensor)
    learning = params * work.trainable_share
    group = Group.strided(layout.replicas, layout.tensor, machine)
    if group.size == 1:
        return []
    if layout.zero_stage == 3:
        return _whole_partition(work, layout, software, machine, group, params)
    # gradients leave in buckets, each of which pays the latency of an exchange
    calls = math.ceil(learning / software.bucket_params) if software.bucket_params else 1
    gradients, weights = learning * software.reduced_bytes / calls, learning * software.weight_bytes / calls
    gather = calls * gather_seconds(weights, group, machine)
    # chunks of an interleaved pipeline end their backward pass one after the other, in turns of all stages
    turns = layout.pipeline if layout.virtual_stages > 1 else 1
    if layout.zero_stage == 0 and software.flattened_sums:
        return [Exchange(reduce_seconds(learning * software.reduced_bytes, group, machine))]
    if layout.zero_stage == 0:
        return [Exchange(calls * reduce_seconds(gradients, group, machine), turns * 2 / 3)]
    if layout.zero_stage == 1 and software.sums_late:
        pieces = work.layers / layout.pipeline * software.gather_pieces * group.size * machine.launch_seconds
        summed = reduce_seconds(learning * software.reduced_bytes, group, machine)
        spread = gather_seconds(learning * software.weight_bytes, group, machine)
        return [Exchange(summed), Exchange(spread + pieces)]
    passes = layout.accumulation if layout.zero_stage == 2 and software.reduces_each_pass else 1
    sum_seconds = reduce_seconds if software.sums_whole else gather_seconds
    scatter = passes * calls * sum_seconds(gradients, group, machine)
    behind = turns / 3 if software.overlaps_data and layout.zero_stage == 1 else 0.0
    return [Exchange(scatter, passes * turns * 2 / 3), Exchange(gather, behind)]


def _whole_partition(
    work: Work, layout: Layout, software: Software, machine: Machine, group: Group, params: float
) -> list[Exchange]:
    """Stage 3: one exchange for each block, so latencies add up."""
    near = Group.strided(layout.hpz, layout.tensor, machine) if layout.hpz > 1 else group
    weights = params * software.weight_bytes
    gradients = params * work.trainable_share * software.reduced_bytes
    count, calls = layout.accumulation, work.layers / layout.pipeline
    first = calls * gather_seconds(weights / calls, group, machine)
    again = (software.gathers - 1) * calls * gather_seconds(weights / calls, near, machine)
    scatter = calls * gather_seconds(gradients / calls, group, machine)
    return [Exchange(count * (first + again), count), Exchange(count * scatter, count * 2 / 3)]
