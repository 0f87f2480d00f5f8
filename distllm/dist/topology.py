"""This process's rank, and the process group of all ranks."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from distllm.environment import RankEnvironment
from distllm.errors import LaunchError

_BACKLOG = 4096


@dataclass(frozen=True)
class Topology:
    """One rank's place among all ranks.

    ``rank`` counts over all machines, ``local_rank`` over this machine; ``device`` is where the rank computes.
    Groups of ``sequence_ranks`` neighbouring ranks read the same rows, and divide each by positions
    (`distllm.dist.sequence`); groups of ``expert_ranks`` neighbouring ranks hold different experts of each
    mixture (`distllm.dist.experts`).
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    sequence_ranks: int = 1
    expert_ranks: int = 1

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
            LaunchError: variables are missing, are not numbers, or contradict each other.
        """
        place = RankEnvironment.read(os.environ if environment is None else environment)
        if place is None:
            return cls.single(device)
        return cls(
            place.rank,
            place.world_size,
            place.local_rank,
            place.local_world_size,
            _device(device, place.local_rank),
        )

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which rows this rank reads: the number of its group of ranks that share rows."""
        return self.rank // self.sequence_ranks

    @property
    def data_ranks(self) -> int:
        """Number of groups that read different rows."""
        return self.world_size // self.sequence_ranks

    @property
    def sequence_rank(self) -> int:
        """Which positions of its rows are this rank's."""
        return self.rank % self.sequence_ranks

    @property
    def counts_rows(self) -> bool:
        """Whether this rank counts its rows: of a group that shares rows, one rank does."""
        return self.sequence_rank == 0


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

    A single process gets its own group, without a port, so that engines need no special case.

    Raises:
        LaunchError: the other ranks did not appear within ``timeout_seconds``.
    """
    timeout = timedelta(seconds=timeout_seconds)
    on_gpu = topology.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(topology.device)
    backend = "nccl" if on_gpu else "gloo"
    try:
        store = _meeting_place(topology, timeout)
        torch.distributed.init_process_group(
            backend,
            store=store,
            rank=topology.rank,
            world_size=topology.world_size,
            timeout=timeout,
            device_id=topology.device if on_gpu else None,
        )
    except (OSError, RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise LaunchError(
            f"rank {topology.rank} of {topology.world_size} could not meet the others at {address}: {error}",
            where="MASTER_ADDR and MASTER_PORT",
            remedy="check that all ranks run, that the port is free, and that a firewall lets it through",
        ) from error


def _meeting_place(topology: Topology, timeout: timedelta) -> Any:
    """Return the store for the rendezvous, which listens only on the address of rank 0.

    Anybody who can connect to a store can write to it, and torch's default is to listen on every interface. It
    still does if rank 0's machine does not have the address at which others reach it. None: a launcher has
    created the store.
    """
    # The stubs leave the stores out, the package does not.
    if topology.world_size == 1:
        return torch.distributed.HashStore()  # type: ignore[attr-defined]
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    listener = _listen(host, port) if topology.is_main else None
    return torch.distributed.TCPStore(  # type: ignore[attr-defined]
        host,
        port,
        topology.world_size,
        is_master=topology.is_main,
        timeout=timeout,
        master_listen_fd=listener.detach() if listener else None,
    )


def _listen(host: str, port: int) -> socket.socket | None:
    """Return a socket that listens on this address; None if this machine does not have it."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            return None
        raise
    return listener


def destroy_process_group() -> None:
    """Leave the process group, if there is one; a group that is already broken raises no error."""
    if not torch.distributed.is_initialized():
        return
    deepspeed = sys.modules.get("deepspeed")
    with contextlib.suppress(RuntimeError):
        if deepspeed is not None and deepspeed.comm.is_initialized():
            deepspeed.comm.destroy_process_group()
        else:
            torch.distributed.destroy_process_group()
