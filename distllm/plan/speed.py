"""Seconds of one optimizer step: products, attention, element-wise work, exchanges, update.

Each is a number of operations or bytes over a speed that was measured alone, times the share of it that
training reaches (`Efficiency`): fitted once, on one published table, for all models, layouts and machines.
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

# Bytes of host memory that DeepSpeed moves for an offloaded weight around its update: its gradient
# arrives in fp32 (4), is scaled in place (8), and the new weight is converted (4 + 2).
_AROUND_UPDATE = 18
# How much longer work takes beside an exchange, which takes multiprocessors and memory bandwidth from it: on
# average over GPT and LLaMA models on four H100, A100, MI210 or MI250 (Lee et al. 2025, arXiv 2507.03114).
_SLOWED = 0.189


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step by where they go.

    Attributes:
        tensor_exchange: those of tensor parallelism that nothing hides.
        exposed: exchanges with other data-parallel ranks that nothing hides.
        hidden: those that work hides; not part of the step.
        slowed: what work loses to exchanges beside it.
        launching: the device waits for its host to launch kernels.
        bubble: a pipeline's longest stage waits for the others.
        uneven: the other stages wait for the longest one.
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
        """All work of micro-batches, and the waiting for its launches."""
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
    parts = _micro_batch(work, layout, software, machine, efficiency)
    parts["launching"] = max(0.0, host_seconds(work, layout, software, machine) - sum(parts.values()))
    micro, count = sum(parts.values()), layout.accumulation
    slowest = _slowest_stage(work, layout, software, micro, parts["head"] * layout.pipeline)
    exchanges = data_exchanges(work, layout, software, machine)
    overlap = 1.0 if software.overlaps_data else efficiency.overlap
    # Their windows overlap, and the links carry one after another: no second of work hides two of them.
    hidden = sum(min(overlap * exchange.seconds, exchange.window * micro) for exchange in exchanges)
    hidden = min(hidden, count * micro)
    beside = count * _hidden_in_micro_batch(work, layout, software, machine)
    return StepTime(
        **{name: count * seconds for name, seconds in parts.items()},
        exposed=sum(exchange.seconds for exchange in exchanges) - hidden,
        hidden=hidden,
        slowed=(1 - 1 / (1 + _SLOWED)) * (hidden + beside),
        bubble=(layout.pipeline * micro - slowest) / layout.virtual_stages,
        uneven=count * (slowest - micro),
        update=_update_seconds(work, layout, software, machine),
    )


def _micro_batch(
    work: Work, layout: Layout, software: Software, machine: Machine, efficiency: Efficiency
) -> dict[str, float]:
    """Return the seconds of one micro-batch in an average stage by where they go, launches left out."""
    forward, backward = block_passes(work, layout, software, machine, efficiency)
    blocks = work.layers / layout.pipeline
    head = head_seconds(work, layout, software, machine, efficiency) / layout.pipeline
    compares = blocks * forward.total + head / (2 + work.trainable_share)
    adding = _streaming_seconds(work, layout, software.adding_bytes, machine)
    return {
        "gemm": blocks * (forward.gemm + backward.gemm),
        "attention": blocks * (forward.attention + backward.attention),
        "elementwise": blocks * (forward.elementwise + backward.elementwise) + adding,
        "head": head,
        "reference": compares if software.reference_bytes else 0.0,
        "recompute": blocks * _again_seconds(work, layout, software, forward),
        "tensor_exchange": software.tensor_exposed * _tensor_exchanges(work, layout, software, machine),
        "sequence_exchange": blocks * sequence_seconds(work, layout, software, machine),
        "expert_exchange": blocks * expert_seconds(work, layout, software, machine),
        "stage_exchange": software.stage_messages * message_seconds(work, layout, software, machine),
    }


def _tensor_exchanges(work: Work, layout: Layout, software: Software, machine: Machine) -> float:
    """Return the seconds of a stage's exchanges of tensor parallelism for one micro-batch, hidden or not."""
    # embedding and output projection have half of a block's
    blocks = (work.layers + 0.5) / layout.pipeline
    return blocks * tensor_seconds(work, layout, software, machine)


def _hidden_in_micro_batch(work: Work, layout: Layout, software: Software, machine: Machine) -> float:
    """Return the seconds of exchanges inside a micro-batch that work hides."""
    hidden = (1 - software.tensor_exposed) * _tensor_exchanges(work, layout, software, machine)
    if layout.virtual_stages > 1:
        # an interleaved pipeline hides what each chunk of blocks receives and sends, forward and backward
        hidden += 2 * layout.virtual_stages * message_seconds(work, layout, software, machine)
    return hidden


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
