"""Ulysses sequence parallelism: ranks divide a row by positions, and its attention by heads.

Everything except attention treats positions independently, so each rank computes its own part of a row. Before
attention one all-to-all gives every rank all positions of some heads; after it, a second one returns all heads of
the rank's positions (Jacobs et al. 2023, arXiv 2309.14509). Document boundaries need no special care: inside
attention each rank sees whole rows.

Shapes: B rows, T positions, S ranks of a group, t = T / S positions of this rank, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup

from distllm.dist.collectives import rank_errors
from distllm.dist.topology import Topology


class SequenceGroup:
    """The ranks that share rows, and this rank's place among them.

    Args:
        topology: this rank's place among all; neighbouring ranks form groups.
        timeout_seconds: longest wait for another rank of the group.

    Raises:
        LaunchError: the other ranks did not take part; creating groups is collective.
    """

    def __init__(self, topology: Topology, timeout_seconds: float) -> None:
        self.size, self.rank = topology.sequence_ranks, topology.sequence_rank
        self._topology = topology
        timeout = timedelta(seconds=timeout_seconds)
        with rank_errors(topology, "forming sequence groups"):
            # Every rank takes part in creating every group, including those it does not belong to.
            groups = [
                torch.distributed.new_group(range(first, first + self.size), timeout=timeout)
                for first in range(0, topology.world_size, self.size)
            ]
        self._group = groups[topology.data_rank]

    def part(self, x_BT: Tensor) -> Tensor:
        """Return this rank's positions of whole rows, x_Bt."""
        return x_BT.chunk(self.size, dim=1)[self.rank]

    def heads(self, x_HN: Tensor) -> Tensor:
        """Return the part of this rank's query heads of a tensor of all heads."""
        return x_HN.chunk(self.size, dim=0)[self.rank]

    def to_heads(self, *parts_BtHD: Tensor) -> Sequence[Tensor]:
        """Return all positions of this rank's heads, with one all-to-all.

        Args:
            parts_BtHD: queries, keys and values of this rank's positions. With fewer heads than ranks, each
                rank that shares a head gets a copy; its gradient is the sum of theirs.

        Returns:
            For each part, x_BThD with h = H / S, or 1.
        """
        spread = [self._each_rank(part_BtHD) for part_BtHD in parts_BtHD]
        together_SBthD = torch.cat(spread, dim=3)
        received_SBthD = self._exchange(together_SBthD)
        rows_BThD = received_SBthD.transpose(0, 1).flatten(1, 2)
        return torch.split(rows_BThD, [part.shape[3] for part in spread], dim=2)

    def to_positions(self, x_BThD: Tensor) -> Tensor:
        """Return all heads of this rank's positions: the inverse of `to_heads` for one part."""
        spread_SBthD: Tensor = x_BThD.unflatten(1, (self.size, -1)).transpose(0, 1)  # type: ignore[no-untyped-call]
        received_SBthD = self._exchange(spread_SBthD)
        return received_SBthD.permute(1, 2, 0, 3, 4).flatten(2, 3)

    def _each_rank(self, part_BtHD: Tensor) -> Tensor:
        """Divide heads by rank: part_SBthD."""
        if part_BtHD.shape[2] < self.size:
            part_BtHD = part_BtHD.repeat_interleave(self.size // part_BtHD.shape[2], dim=2)
        spread: Tensor = part_BtHD.unflatten(2, (self.size, -1))  # type: ignore[no-untyped-call]
        return spread.permute(2, 0, 1, 3, 4)

    def _exchange(self, x_SN: Tensor) -> Tensor:
        received: Tensor = _AllToAll.apply(x_SN, self._group, self._topology)  # type: ignore[no-untyped-call]
        return received


class _AllToAll(torch.autograd.Function):
    """Send the s-th slice to rank s, receive one from each; backward sends gradients the way back."""

    @staticmethod
    def forward(ctx: Any, x_SN: Tensor, group: ProcessGroup, topology: Topology) -> Tensor:
        ctx.group, ctx.topology = group, topology
        return _all_to_all(x_SN, group, topology)

    @staticmethod
    def backward(ctx: Any, grad_SN: Tensor) -> tuple[Tensor, None, None]:
        return _all_to_all(grad_SN, ctx.group, ctx.topology), None, None


def _all_to_all(x_SN: Tensor, group: ProcessGroup, topology: Topology) -> Tensor:
    sent_SN = x_SN.contiguous()
    received_SN = torch.empty_like(sent_SN)
    with rank_errors(topology, "exchanging heads for positions"):
        torch.distributed.all_to_all_single(received_SN, sent_SN, group=group)
    return received_SN
