"""Gathering a flat tensor, of which ranks hold parts, on the one rank that needs it.

The others send their parts and allocate nothing; a rank without a part that is not the owner does nothing. So
a tensor crosses the network once, whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """The elements [start, stop) of a flat tensor, which ``rank`` holds."""

    rank: int
    start: int
    stop: int


def bring_together(
    own: Tensor | None, parts: Sequence[Part], *, rank: int, owner: int, device: torch.device
) -> Tensor | None:
    """Return the whole flat tensor (fp32) on ``owner``, None elsewhere. Collective among those who hold parts.

    Args:
        own: this rank's part, flat and without padding; None if it has none.
        parts: all parts, the same on every rank; together they hold every element once.
        rank: this rank.
        owner: the rank that needs the tensor.
        device: device for the communication.
    """
    if own is not None:
        own = own.to(device, torch.float32).contiguous()
    if rank != owner:
        if own is not None:
            _send_and_receive([torch.distributed.P2POp(torch.distributed.isend, own, owner)])
        return None
    whole = torch.empty(max(part.stop for part in parts), dtype=torch.float32, device=device)
    incoming = []
    for part in parts:
        target = whole[part.start : part.stop]
        if part.rank != owner:
            incoming.append(torch.distributed.P2POp(torch.distributed.irecv, target, part.rank))
        elif own is not None:
            target.copy_(own)
    _send_and_receive(incoming)
    return whole


def _send_and_receive(operations: list[torch.distributed.P2POp]) -> None:
    """Run all operations as one batch: one by one, NCCL would create a communicator per pair of ranks."""
    if operations:
        for request in torch.distributed.batch_isend_irecv(operations):
            request.wait()
