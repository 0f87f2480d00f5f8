"""Seconds of one optimizer step: products, attention, element-wise work, exchanges, update.

Every time is a number of operations or bytes over a speed that was measured alone. What training
reaches of it (`Efficiency`) is fitted once, on one published table, and is the same for every model,
layout and machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from distllm.plan.blocks import Pass, block_passes, half_share, head_seconds
from distllm.plan.exchanges import (
    data_exchanges,
    expert_seconds,
    message_seconds,
    sequence_seconds,
    tensor_seconds,
)
from distllm.plan.launches import host_seconds
from distllm.plan.layout import Layout, Software
from distllm.plan.machine import Efficiency, Machine
from distllm.plan.stages import stages_of
from distllm.plan.work import Work

# Bytes of host memory that DeepSpeed moves for an offloaded weight besides the update: its gradient
# arrives in fp32 (4), is scaled where it lies (8), and the new weight is converted (4 + 2).
_AROUND_UPDATE = 18
# How much longer work takes beside an exchange, which takes multiprocessors and memory bandwidth from it: on
# average over GPT and LLaMA models on four H100, A100, MI210 or MI250 (Lee et al. 2025, arXiv 2507.03114).
_SLOWED = 0.189


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step by where they go.

    Attributes:
        tensor_exchange: of tensor parallelism, what nothing hides.
        exposed: of exchanges with other data-parallel ranks, what nothing hides.
        hidden: of these, what work hides; no part of the step.
        slowed: what work loses to the exchanges that it hides.
        launching: what the device waits for its host to launch kernels.
        bubble: what a pipeline's longest stage waits for the others.
        uneven: what all wait for the longest stage.
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
    slowed: float
    launching: float
    bubble: float
    uneven: float
    update: float

    @property
    def total(self) -> float:
        """All seconds of the step."""
        return self._launched + self.exposed + self.slowed + self.bubble + self.uneven + self.update

    @property
    def _launched(self) -> float:
        """All that the host launches for micro-batches, and what the device waits for it."""
        parts = (self.gemm, self.attention, self.elementwise, self.head, self.reference, self.recompute)
        exchanges = (self.tensor_exchange, self.sequence_exchange, self.expert_exchange, self.stage_exchange)
        return sum(parts) + sum(exchanges) + self.launching

    @property
    def limit(self) -> str:
        """What takes most of the step, in words.

        Where the device waits for launches at all, it is they that set the pace of micro-batches.
        """
        shares = {
            "kernel launches": self._launched if self.launching else 0.0,
            "matrix products": self.gemm + self.head,
            "attention": self.attention,
            "memory traffic": self.elementwise,
            "the reference model": self.reference,
            "recomputation": self.recompute,
            "exchanges between ranks": self.exposed
            + self.slowed
            + self.tensor_exchange
            + self.sequence_exchange
            + self.stage_exchange,
            "tokens on their way to experts": self.expert_exchange,
            "the pipeline's bubble": self.bubble,
            "the pipeline's longest stage": self.uneven,
            "the optimizer": self.update,
        }
        return max(shares, key=lambda name: shares[name])


def step_time(
    work: Work, layout: Layout, software: Software, machine: Machine, efficiency: Efficiency
) -> StepTime:
    """Return where the seconds of one step go."""
    forward, backward = block_passes(work, layout, software, machine, efficiency)
    blocks = work.layers / layout.pipeline
    head = head_seconds(work, layout, software, machine, efficiency) / layout.pipeline
    reference = 0.0
    if software.reference_bytes:
        reference = blocks * forward.total + head / (2 + work.trainable_share)
    again = _again_seconds(work, layout, software, forward)
    # embedding and output projection have half of a block's exchanges of tensor parallelism
    shared = (blocks + 0.5 / layout.pipeline) * tensor_seconds(work, layout, software, machine)
    tensor = software.tensor_exposed * shared
    sequence = blocks * sequence_seconds(work, layout, software, machine)
    expert = blocks * expert_seconds(work, layout, software, machine)
    message = message_seconds(work, layout, software, machine)
    stages = software.stage_messages * message
    # an interleaved pipeline hides what each chunk of blocks receives and sends, forward and backward
    beside = shared - tensor + (2 * layout.virtual_stages * message if layout.virtual_stages > 1 else 0.0)
    adding = _streaming_seconds(work, layout, software.adding_bytes, machine)
    micro = blocks * (forward.total + backward.total + again) + head + reference + adding
    micro += tensor + sequence + expert + stages
    launching = max(0.0, host_seconds(work, layout, software, machine) - micro)
    micro += launching
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
        slowed=(1 - 1 / (1 + _SLOWED)) * (hidden + count * beside),
        launching=count * launching,
        bubble=(layout.pipeline * micro - slowest) / layout.virtual_stages,
        uneven=count * (slowest - micro),
        update=_update_seconds(work, layout, software, machine),
    )


def _again_seconds(work: Work, layout: Layout, software: Software, forward: Pass) -> float:
    """Return the seconds of what one block computes more than once."""
    half = half_share(work) * forward.gemm if software.keeps_half else 0.0
    recomputed = {"none": 0.0, "selective": forward.elementwise + half, "full": forward.total}
    return recomputed[layout.checkpointing] + (software.forward_passes - 1) * forward.total


def _slowest_stage(work: Work, layout: Layout, software: Software, micro: float, head: float) -> float:
    """Return the seconds of a micro-batch in the slowest stage, given those in an average one."""
    if layout.pipeline == 1:
        return micro
    block = (micro * layout.pipeline - head) / work.layers
    stages = stages_of(work, layout, software)
    return max(stage.blocks * block + stage.last * head for stage in stages)


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
