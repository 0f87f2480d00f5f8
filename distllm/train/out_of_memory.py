"""When a rank runs out of memory: report what was in use, and let the next attempt use smaller micro-batches.

The attempt ends: its ranks are in the middle of a step, some with partly reduced gradients, so that starting
again from the checkpoint is safer than continuing with a smaller micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from distllm.config.memory_limit import MemoryLimit, write_memory_limit
from distllm.config.resolve import Resolved
from distllm.dist.topology import Topology
from distllm.errors import ConfigError, OutOfMemory
from distllm.machine import available_memory
from distllm.observe.metrics import memory_bytes
from distllm.train.state import TrainState
from distllm.units import format_bytes

_CPU_ALLOCATOR = "DefaultCPUAllocator"


@contextmanager
def memory_errors(
    resolved: Resolved, state: TrainState, topology: Topology, run_directory: Path
) -> Iterator[None]:
    """Turn a failed allocation inside the block into an error, and record it for the next attempt.

    Raises:
        OutOfMemory: ``memory.json`` was written: the next attempt halves the micro-batch.
        ConfigError: the micro-batch is already a single sequence.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise _recorded(resolved, state, topology, run_directory) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a failed allocation, on the device or on the host."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _CPU_ALLOCATOR in str(error)


def _recorded(
    resolved: Resolved, state: TrainState, topology: Topology, run_directory: Path
) -> OutOfMemory | ConfigError:
    """Write the limit for the next attempt if there is a smaller micro-batch; return the error to raise."""
    size, seq_len = resolved.micro_batch_size, resolved.config.data.seq_len
    limit = MemoryLimit(
        micro_batch_tokens=size * seq_len // topology.sequence_ranks,
        step=state.step + 1,
        rank=topology.rank,
        report=memory_report(topology.device),
    )
    cause = (
        f"rank {topology.rank} ran out of memory in step {limit.step} "
        f"with micro-batches of {size} sequences of {seq_len} tokens ({limit.report})"
    )
    if size == 1:
        return ConfigError(
            cause,
            where="engine.micro_batch_tokens, data.seq_len",
            remedy="a single sequence does not fit: engine=zero3, more ranks, a smaller model, "
            "more engine.sequence_ranks, or a shorter data.seq_len",
        )
    write_memory_limit(run_directory, limit)
    return OutOfMemory(
        cause,
        where=str(run_directory / "memory.json"),
        remedy=f"run the same command again: it uses micro-batches of at most {limit.allowed_tokens} tokens "
        "and accumulates more of them, so that the global batch stays the same",
    )


def memory_report(device: torch.device) -> str:
    """Describe how much memory this rank holds and how much is free."""
    host = f"{format_bytes(memory_bytes())} of main memory held, {format_bytes(available_memory() or 0)} free"
    if device.type != "cuda":
        return host
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_allocated(device)
    peak = torch.cuda.max_memory_allocated(device)
    return (
        f"{format_bytes(held)} of device memory held, {format_bytes(peak)} at most, "
        f"{format_bytes(free)} of {format_bytes(total)} free; {host}"
    )
