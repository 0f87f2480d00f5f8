"""A flat tensor of which ranks hold parts, brought together on the one rank that needs it.

The others send what they hold and allocate nothing; a rank that holds none and needs none takes no part.
A tensor therefore crosses the network once, however many ranks there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """The elements ``start`` to ``stop`` - 1 of a flat tensor, which ``rank`` holds."""

    rank: int
    start: int
    stop: int


def bring_together(
    own: Tensor | None, parts: Sequence[Part], *, rank: int, owner: int, device: torch.device
) -> Tensor | None:
    """Return the whole flat tensor (fp32) on ``owner``, None elsewhere. Collective among those who hold parts.

    Args:
        own: what this rank holds, flat and without padding; None if it holds nothing.
        parts: who holds what, the same on every rank; together every element once.
        rank: this rank.
        owner: the rank that needs it.
        device: where ranks exchange tensors.
    """
    if own is not None:
        own = own.to(device, torch.float32).contiguous()
    if rank != owner:
        if own is not None:
            _exchange([torch.distributed.P2POp(torch.distributed.isend, own, owner)])
        return None
    whole = torch.empty(max(part.stop for part in parts), dtype=torch.float32, device=device)
    incoming = []
    for part in parts:
        target = whole[part.start : part.stop]
        if part.rank != owner:
            incoming.append(torch.distributed.P2POp(torch.distributed.irecv, target, part.rank))
        elif own is not None:
            target.copy_(own)
    _exchange(incoming)
    return whole


def _exchange(operations: list[torch.distributed.P2POp]) -> None:
    """Do all of them at once: one by one, NCCL would make a communicator for every pair of ranks."""
    if operations:
        for request in torch.distributed.batch_isend_irecv(operations):
            request.wait()
