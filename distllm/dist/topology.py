"""Which rank this process is, and the process group it shares with the others.

The environment decides: torchrun and the deepspeed launcher set ``RANK``, ``WORLD_SIZE`` and
``LOCAL_RANK``; srun sets ``SLURM_PROCID``, ``SLURM_NTASKS`` and ``SLURM_LOCALID``; with none of
them the process is alone. Variables that contradict each other are an error, never a guess.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed

from distllm.errors import LaunchError


@dataclass(frozen=True)
class Topology:
    """One rank's place among all ranks.

    ``rank`` counts over all machines, ``local_rank`` over this machine; ``device`` is where the
    rank computes.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @classmethod
    def single(cls, device: str = "cpu") -> Topology:
        """Return the topology of a process that is alone."""
        return cls(0, 1, 0, 1, _device(device, 0))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, device: str = "cpu") -> Topology:
        """Read this process's place from launcher variables.

        Args:
            environment: the variables; the process's own by default.
            device: ``"cpu"`` or ``"cuda"``.

        Raises:
            LaunchError: variables are missing, are no numbers, or contradict each other.
        """
        env = os.environ if environment is None else environment
        if "RANK" in env or "WORLD_SIZE" in env:
            place = _from_torch_variables(env)
        elif "SLURM_PROCID" in env and ("SLURM_STEP_ID" in env or "MASTER_ADDR" in env):
            # The shell of a batch script has SLURM_PROCID too, but neither a step nor a rendezvous.
            place = _from_slurm_variables(env)
        else:
            return cls.single(device)
        rank, world_size, local_rank, local_world_size = place
        _check_range(rank, "RANK", world_size, "WORLD_SIZE")
        _check_range(local_rank, "LOCAL_RANK", local_world_size, "LOCAL_WORLD_SIZE")
        _check_range(local_world_size - 1, "LOCAL_WORLD_SIZE - 1", world_size, "WORLD_SIZE")
        if world_size > 1:
            _check_rendezvous(env)
        return cls(rank, world_size, local_rank, local_world_size, _device(device, local_rank))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and speaks to the user."""
        return self.rank == 0


def _from_torch_variables(env: Mapping[str, str]) -> tuple[int, int, int, int]:
    rank, world_size = _integer(env, "RANK"), _integer(env, "WORLD_SIZE")
    tasks = env.get("SLURM_STEP_NUM_TASKS", "1")
    if "SLURM_STEP_ID" in env and tasks.isdigit() and int(tasks) > world_size:
        raise LaunchError(
            f"WORLD_SIZE={world_size} contradicts the {tasks} tasks of this SLURM step",
            where="environment of the rank",
            remedy="unset RANK and WORLD_SIZE in the job script, so that srun's own variables count",
        )
    # The deepspeed launcher says LOCAL_SIZE where torchrun says LOCAL_WORLD_SIZE.
    local_name = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in env else "LOCAL_SIZE"
    local_world_size = _integer(env, local_name) if local_name in env else world_size
    if "LOCAL_RANK" in env:
        return rank, world_size, _integer(env, "LOCAL_RANK"), local_world_size
    if local_world_size != world_size:
        raise LaunchError(
            f"LOCAL_RANK is not set although {local_name}={local_world_size} of WORLD_SIZE={world_size}",
            where="environment of the rank",
            remedy="start ranks with distllm, torchrun, deepspeed or srun",
        )
    return rank, world_size, rank, local_world_size


def _from_slurm_variables(env: Mapping[str, str]) -> tuple[int, int, int, int]:
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    rank, world_size = _integer(env, "SLURM_PROCID"), _integer(env, tasks)
    local_rank = _integer(env, "SLURM_LOCALID")
    spread = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE")
    local_world_size = world_size
    if spread:
        node = _integer(env, "SLURM_NODEID") if "SLURM_NODEID" in env else 0
        local_world_size = _tasks_of_node(spread, node)
    return rank, world_size, local_rank, local_world_size


def _tasks_of_node(spread: str, node: int) -> int:
    """Return the tasks of ``node`` in SLURM's run-length notation, such as ``4(x2),3``."""
    counts: list[int] = []
    for part in spread.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            break
        counts.extend([int(match.group(1))] * int(match.group(2) or 1))
    if node >= len(counts):
        raise LaunchError(
            f"SLURM_NODEID={node} does not fit SLURM_TASKS_PER_NODE={spread!r}",
            where="environment of the rank",
            remedy="start ranks with srun, which sets both",
        )
    return counts[node]


def _integer(env: Mapping[str, str], name: str) -> int:
    text = env.get(name)
    if text is None or not text.strip().isdigit():
        found = "is not set" if text is None else f"is {text!r}, not a number"
        raise LaunchError(
            f"{name} {found}, but other rank variables are set",
            where="environment of the rank",
            remedy="start ranks with distllm, torchrun, deepspeed or srun, or unset RANK and WORLD_SIZE",
        )
    return int(text)


def _check_range(value: int, name: str, size: int, size_name: str) -> None:
    if not 0 <= value < size:
        raise LaunchError(
            f"{name}={value} contradicts {size_name}={size}",
            where="environment of the rank",
            remedy="start all ranks with one launcher, and unset what an earlier one left behind",
        )


def _check_rendezvous(env: Mapping[str, str]) -> None:
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    if missing:
        raise LaunchError(
            f"{' and '.join(missing)} not set although there are several ranks",
            where="environment of the rank",
            remedy="export the first node's name as MASTER_ADDR and a free port as MASTER_PORT",
        )


def _device(kind: str, local_rank: int) -> torch.device:
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise LaunchError(
            "device cuda was asked for, but torch sees no GPU",
            where="cluster.device",
            remedy="use cluster.device=cpu, or check the driver with nvidia-smi",
        )
    visible = torch.cuda.device_count()
    # A scheduler may show each rank only its own GPU, which then has index 0.
    index = 0 if visible == 1 else local_rank
    if index >= visible:
        raise LaunchError(
            f"local rank {local_rank} has no GPU: {visible} are visible",
            where="cluster.procs_per_node",
            remedy="start at most one rank per GPU",
        )
    return torch.device("cuda", index)


def set_extension_cache(directory: Path) -> None:
    """Let C++ extensions be built under ``directory``, unless the user chose another place.

    A build that was killed leaves a lock behind; in a shared place it would hang every later job.
    """
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(directory).absolute()))


def init_process_group(topology: Topology, timeout_seconds: float) -> None:
    """Join the other ranks: gloo between CPUs, nccl between GPUs.

    A single process gets a group of its own, without a port, so that engines need no special case.

    Raises:
        LaunchError: the other ranks did not appear within ``timeout_seconds``.
    """
    timeout = timedelta(seconds=timeout_seconds)
    on_gpu = topology.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(topology.device)
    backend = "nccl" if on_gpu else "gloo"
    # The stubs leave HashStore out, the package does not.
    store = torch.distributed.HashStore() if topology.world_size == 1 else None  # type: ignore[attr-defined]
    try:
        torch.distributed.init_process_group(
            backend,
            store=store,
            rank=topology.rank,
            world_size=topology.world_size,
            timeout=timeout,
            device_id=topology.device if on_gpu else None,
        )
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise LaunchError(
            f"rank {topology.rank} of {topology.world_size} could not meet the others at {address}: {error}",
            where="MASTER_ADDR and MASTER_PORT",
            remedy="check that all ranks run, that the port is free, and that a firewall lets it through",
        ) from error


def destroy_process_group() -> None:
    """Leave the process group, if there is one; never raises for a group that is already broken."""
    if not torch.distributed.is_initialized():
        return
    deepspeed = sys.modules.get("deepspeed")
    with contextlib.suppress(RuntimeError):
        if deepspeed is not None and deepspeed.comm.is_initialized():
            deepspeed.comm.destroy_process_group()
        else:
            torch.distributed.destroy_process_group()
