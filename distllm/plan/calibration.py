"""The measured speeds of this machine's CPUs: their file, and the machine that they describe.

Measuring needs torch and is done by `distllm.train.calibrate`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from distllm.config.resolve import Resolved
from distllm.errors import IntegrityError
from distllm.fsio import atomic_write_json, read_json
from distllm.machine import total_memory
from distllm.plan.machine import Efficiency, Machine

FILE = ".machine.json"


@dataclass(frozen=True, slots=True)
class Calibration:
    """One rank's speeds while the other ranks of the machine are as busy.

    Attributes:
        threads: of the rank.
        ranks: that worked at the same time.
        gemm_flops: FLOP/s of the matrix products of training.
        attention_flops: FLOP/s of attention, forward and backward, causal ones counted by half.
        memory_bandwidth: bytes/s of element-wise operations.
        update_bandwidth: bytes/s of the optimizer.
        reduce_bandwidth: bytes/s of exchanges between ranks of this machine.
        reduce_seconds: latency of an exchange.
    """

    threads: int
    ranks: int
    gemm_flops: float
    attention_flops: float
    memory_bandwidth: float
    update_bandwidth: float
    reduce_bandwidth: float
    reduce_seconds: float

    @property
    def efficiency(self) -> Efficiency:
        """What was measured is reached: nothing is lost beyond it, and a CPU overlaps nothing."""
        return Efficiency(gemm=1.0, operands=1.0, overlap=0.0)


def write_calibration(runs_dir: Path, found: Calibration) -> Path:
    """Keep what was measured; return the file."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    path = runs_dir / FILE
    atomic_write_json(path, asdict(found))
    return path


def read_calibration(runs_dir: Path) -> Calibration | None:
    """Return what was measured, or None if nothing was.

    Raises:
        IntegrityError: the file is not what `write_calibration` writes.
    """
    path = runs_dir / FILE
    if not path.exists():
        return None
    try:
        return Calibration(**read_json(path))
    except TypeError as error:
        raise IntegrityError(
            f"{path} is no calibration: {error}", where=str(path), remedy="distllm plan --calibrate"
        ) from error


def machine_of_calibration(found: Calibration, resolved: Resolved) -> Machine:
    """Return this machine as the ranks of ``resolved`` see it.

    A rank with twice the threads is taken to be twice as fast.
    """
    scale = resolved.threads_per_rank / found.threads
    return Machine(
        name="this machine's CPUs",
        gemm_flops=found.gemm_flops * scale,
        peak_flops=found.gemm_flops * scale,
        memory_bytes=total_memory() / resolved.world.local_size,
        memory_bandwidth=found.memory_bandwidth * scale,
        local_bandwidth=found.reduce_bandwidth,
        network_bandwidth=found.reduce_bandwidth,
        per_node=resolved.world.local_size,
        base_seconds=found.reduce_seconds,
        local_seconds=0.0,
        update_bandwidth=found.update_bandwidth * scale,
        link_efficiency=1.0,
        stream_efficiency=1.0,
        hides_traffic=True,
        attention_flops=found.attention_flops * scale,
        attention_half_length=0.0,
        attention_half_width=0.0,
    )
