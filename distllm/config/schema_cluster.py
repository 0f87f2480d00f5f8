"""Where ranks run: the machines, their scheduler, what is set up on them and checked before training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from distllm.config.options import option
from distllm.config.schema_hardware import HardwareConfig


@dataclass(frozen=True)
class SlurmConfig:
    """What `distllm submit` asks SLURM for, and how a job that ends early comes back."""

    partition: str | None = option(None, "partition (queue); null takes the cluster's default")
    account: str | None = option(None, "account that is charged")
    qos: str | None = option(None, "quality of service")
    reservation: str | None = option(None, "reservation to run in")
    constraint: str | None = option(None, "features that nodes must have")
    nodelist: tuple[str, ...] = option((), "nodes that the job must have, such as [n1,n2]")
    exclude: tuple[str, ...] = option((), "nodes never to run on, such as [n7,gpu-12]")
    switches: str | None = option(
        None, "most switches between the nodes, and how long to wait for it, such as 1@12:00:00"
    )
    time_limit: str = option("24:00:00", "longest time of one start, as MINUTES, HH:MM:SS or D-HH:MM:SS")
    warning_seconds: int = option(
        300, "how long before the time limit the state is saved and the job queues again", minimum=0
    )
    cpus_per_rank: int | None = option(None, "CPU cores of each rank; null leaves it to SLURM", minimum=1)
    memory: str | None = option(None, "memory per node in SLURM's spelling, such as 64G; 0 is all of it")
    gpus: str | None = option(
        None, "GPUs per node in SLURM's spelling, such as h100:8; null asks for one per rank if device=cuda"
    )
    exclusive: bool = option(False, "share the nodes with no other job")
    requeue: bool = option(True, "queue again after the time limit, a preemption or a failure")
    max_restarts: int = option(100, "most starts of a submission after its first", minimum=0)
    max_stalls: int = option(
        2, "starts in a row that may fail, or meet the limit, without one more saved step", minimum=1
    )
    max_array_tasks: int | None = option(
        None, "tasks of an array that run at once; null: all of them", minimum=1
    )
    node_failures: int = option(
        2,
        "starts that fail by a GPU, or a rank that is killed or hangs, before a node is excluded; 0: any",
        minimum=0,
    )
    evaluate_every_steps: int = option(
        0, "evaluate checkpoints of these steps in jobs of their own; 0: none", minimum=0
    )
    mail: str | None = option(None, "address that is notified when the job begins, fails or ends")
    comment: str | None = option(None, "note that SLURM keeps with the job; no secrets")
    python: str | None = option(None, "Python of the compute nodes; null is the one that submits")
    options: tuple[str, ...] = option((), "further options of sbatch, such as ['--nice=100']")
    srun_options: tuple[str, ...] = option((), "further options of srun, such as ['--cpu-bind=cores']")


@dataclass(frozen=True)
class ContainerConfig:
    """An image that ranks run in; the job script itself stays outside, where SLURM's commands are."""

    kind: Literal["none", "pyxis", "apptainer"] = option(
        "none", "none; pyxis (Enroot, through srun's options); or apptainer"
    )
    image: str | None = option(None, "the image: a .sqsh or .sif file, or a registry's address")
    mounts: tuple[str, ...] = option((), "directories to show inside, as OUTSIDE:INSIDE")
    python: str = option("python3", "Python inside the image")


@dataclass(frozen=True)
class HealthConfig:
    """What a node must show before training starts on it. A node that fails is named and left out."""

    enabled: bool = option(True, "check every node of a job before each start")
    min_free_bytes: int = option(
        2**30, "bytes free in the run directory and in the node's temporary directory", unit="bytes"
    )
    min_memory_bandwidth: int = option(
        2**28, "bytes per second that one core copies in main memory; 0 does not measure", unit="bytes"
    )
    min_network_bandwidth: int = option(
        2**20, "bytes per second between a node and the first one; 0 does not measure", unit="bytes"
    )
    min_collective_bandwidth: int = option(
        0,
        "bytes per second at which all nodes sum a tensor; below it each sums with two neighbours, and one "
        "that is slow with both is bad; 0 does not judge",
        unit="bytes",
        minimum=0,
    )
    max_clock_skew: float = option(5.0, "seconds between a node's clock and the first node's", minimum=0.0)
    collective: bool = option(True, "also sum a tensor over all nodes, with the backend that training uses")
    timeout_seconds: int = option(180, "longest time of the whole check", minimum=1)


@dataclass(frozen=True)
class ClusterConfig:
    """Where ranks run. Inside a launcher its environment decides; this is used when there is none."""

    device: Literal["cpu", "cuda"] = option("cpu", "kind of device each rank owns")
    nodes: int = option(1, "machines", minimum=1)
    procs_per_node: int = option(1, "ranks per machine", minimum=1)
    threads_per_rank: int | None = option(
        None, "CPU threads per rank; null shares the cores evenly", minimum=1
    )
    oversubscribe: bool = option(False, "allow more ranks than CPU cores")
    timeout_seconds: int = option(
        600, "longest wait for another rank, and for start-up, a batch of an evaluation or a save", minimum=1
    )
    hang_seconds: float = option(
        10.0,
        "a run hangs if no rank progresses within a step for this long and for thrice the 99th percentile",
        minimum=0.1,
    )
    max_restarts: int = option(
        3, "starts after failures that brought no newer checkpoint; distllm train only", minimum=0
    )
    straggler_factor: float = option(
        2.0, "report a rank as slow if its own part of a step takes this many times the others'; 0: never"
    )
    head: str | None = option(
        None, "name or address of the machine of rank 0; null: the first one of the job or hostfile"
    )
    env: dict[str, str] = option(
        None, "environment of every rank by name: NCCL's and the fabric's settings", factory=dict
    )
    setup: tuple[str, ...] = option((), "shell lines at the top of a job script, such as [module load cuda]")
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    container: ContainerConfig = field(default_factory=ContainerConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
