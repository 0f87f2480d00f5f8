"""The few collectives that the training loop needs, on plain numbers and JSON.

Every function is collective: all ranks call it, in the same order. With one rank there is no communication and
no process group is needed. Objects are sent as JSON, never as pickle. If a rank has died or hangs, the others get
a LaunchError after the timeout of the process group.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed

from distllm.dist.topology import Topology
from distllm.errors import LaunchError
from distllm.heartbeat import HEARTBEAT


@contextmanager
def rank_errors(topology: Topology, doing: str) -> Iterator[None]:
    """Turn a broken connection or an expired timeout inside the block into LaunchError."""
    try:
        with HEARTBEAT.waiting(doing):
            yield
    except RuntimeError as error:
        if not _is_communication_error(error):
            raise
        raise LaunchError(
            f"rank {topology.rank} lost another rank while {doing}: {error}",
            where=f"rank {topology.rank} of {topology.world_size}",
            remedy="look for the first error in the other ranks' output, then run the same command again",
        ) from error


def _is_communication_error(error: RuntimeError) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    return "gloo" in str(error).lower()


def sum_over_ranks(values: Sequence[float], topology: Topology) -> list[float]:
    """Return the element-wise sum of every rank's ``values``.

    The sum is taken in float64: integers are exact up to 2**53.
    """
    return _all_reduce(values, torch.distributed.ReduceOp.SUM, topology, "summing numbers")


def max_over_ranks(values: Sequence[float], topology: Topology) -> list[float]:
    """Return the element-wise maximum of every rank's ``values`` (float64)."""
    return _all_reduce(values, torch.distributed.ReduceOp.MAX, topology, "comparing numbers")


def _all_reduce(
    values: Sequence[float],
    operation: torch.distributed.ReduceOp.RedOpType,
    topology: Topology,
    doing: str,
) -> list[float]:
    numbers = [float(value) for value in values]
    if topology.world_size == 1:
        return numbers
    buffer = torch.tensor(numbers, dtype=torch.float64, device=topology.device)
    with rank_errors(topology, doing):
        torch.distributed.all_reduce(buffer, operation)
    return [float(value) for value in buffer.tolist()]


def gather_over_ranks(values: Sequence[float], topology: Topology) -> list[list[float]]:
    """Return every rank's ``values`` (float64, equally many on each rank), in rank order."""
    numbers = [float(value) for value in values]
    if topology.world_size == 1:
        return [numbers]
    mine = torch.tensor(numbers, dtype=torch.float64, device=topology.device)
    gathered = [torch.empty_like(mine) for _ in range(topology.world_size)]
    with rank_errors(topology, "gathering numbers"):
        torch.distributed.all_gather(gathered, mine)
    return [[float(value) for value in buffer.tolist()] for buffer in gathered]


def broadcast_json(value: Any, topology: Topology) -> Any:
    """Return rank 0's ``value`` on every rank; the others' argument is ignored.

    The value must survive JSON unchanged: dicts with string keys, lists, strings, numbers, None.
    """
    if topology.world_size == 1:
        return value
    device = topology.device
    payload = json.dumps(value).encode() if topology.is_main else b""
    length = torch.tensor([len(payload)], dtype=torch.int64, device=device)
    with rank_errors(topology, "sharing a decision of rank 0"):
        torch.distributed.broadcast(length, src=0)
        buffer = torch.empty(int(length.item()), dtype=torch.uint8, device=device)
        if topology.is_main:
            buffer.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
        torch.distributed.broadcast(buffer, src=0)
    return json.loads(buffer.cpu().numpy().tobytes())


def gather_json(value: Any, topology: Topology) -> list[Any]:
    """Return every rank's ``value``, in rank order; values as for `broadcast_json`."""
    if topology.world_size == 1:
        return [value]
    payload = json.dumps(value).encode()
    lengths = [int(length) for (length,) in gather_over_ranks([len(payload)], topology)]
    mine = torch.zeros(max(lengths), dtype=torch.uint8, device=topology.device)
    mine[: len(payload)].copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
    gathered = [torch.empty_like(mine) for _ in lengths]
    with rank_errors(topology, "gathering what ranks report"):
        torch.distributed.all_gather(gathered, mine)
    return [
        json.loads(buffer[:length].cpu().numpy().tobytes())
        for buffer, length in zip(gathered, lengths, strict=True)
    ]


def barrier(topology: Topology) -> None:
    """Return once every rank has arrived here."""
    if topology.world_size > 1:
        with rank_errors(topology, "waiting for all ranks"):
            torch.distributed.barrier()
