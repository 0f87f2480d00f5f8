"""What a resolved experiment asks of the planner: its layout, its search space, its device's memory."""

from __future__ import annotations

import math

from distllm.config.checks_parallel import parts_experts, shares_rows
from distllm.config.resolve import Resolved
from distllm.config.schema import Config
from distllm.machine import total_memory
from distllm.plan.layout import Layout, Offload
from distllm.plan.search import Space

_SHARING_RANKS = (1, 2, 4, 8)


def layout_of(resolved: Resolved) -> Layout:
    """Return the layout that a run would have."""
    config = resolved.config
    return Layout(
        ranks=resolved.world.size,
        seq_len=config.data.seq_len,
        micro_batch=resolved.micro_batch_size,
        accumulation=resolved.grad_accum_steps,
        zero_stage=config.engine.zero_stage,
        checkpointing=config.engine.activation_checkpointing,
        sequence=config.engine.sequence_ranks,
        expert=config.engine.expert_ranks,
        hpz=config.engine.hpz_ranks,
        offload=_offload_of(config),
    )


def _offload_of(config: Config) -> Offload:
    """Return what offloading moves: the memory of a CPU rank is main memory already."""
    on_gpu = config.cluster.device == "cuda"
    if config.engine.offload == "nvme":
        return "disk" if on_gpu else "mapped"
    return "optimizer" if config.engine.offload == "cpu" and on_gpu else "none"


def space_of(config: Config) -> Space:
    """Return what a search may change of an experiment."""
    sequence = _SHARING_RANKS if shares_rows(config) else (1,)
    expert = _SHARING_RANKS if parts_experts(config) else (1,)
    if config.engine.name == "local":
        return Space(zero_stages=(0,), sequence=sequence, expert=expert, offload=("none",))
    away = config.cluster.device == "cuda"
    offload: list[Offload] = ["none", "optimizer"] if away else ["none"]
    if config.engine.offload_dir is not None:
        offload.append("disk" if away else "mapped")
    # a second copy inside a node spares its backward pass the network
    spans_nodes = config.cluster.nodes > 1 and config.cluster.procs_per_node > 1
    hpz = (1, config.cluster.procs_per_node) if spans_nodes else (1,)
    return Space(sequence=sequence, expert=expert, hpz=hpz, offload=offload)


def device_memory(resolved: Resolved) -> float | None:
    """Return the bytes that one rank may use, or None where the profile does not say."""
    cluster = resolved.config.cluster
    if cluster.device == "cpu":
        return total_memory() / resolved.world.local_size
    if cluster.hardware.memory_gb is None:
        return None
    return cluster.hardware.memory_gb * 1e9


def host_memory(resolved: Resolved) -> float:
    """Return the bytes of host memory that one rank may use, without limit where the profile does not say."""
    room = resolved.config.cluster.hardware.host_memory_gb
    on_gpu = resolved.config.cluster.device == "cuda"  # what a CPU rank offloads to are files
    return room * 1e9 if on_gpu and room is not None else math.inf
