"""Expert parallelism: neighbouring ranks hold different experts, and tokens are sent to the rank of their expert.

Each rank reads its own rows. In every mixture-of-experts layer one all-to-all sends tokens to the rank that holds
their expert, and a second one returns the outputs (Lepikhin et al. 2020, arXiv 2006.16668). No token is
dropped: ranks first exchange the numbers of tokens, so a step has the result of one rank with all experts.

Shapes: S ranks of a group, E experts, e = E / S experts of this rank, C channels, M tokens that this rank
sends (once for each of their experts), R tokens that it receives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup

from distllm.dist.collectives import rank_errors
from distllm.dist.topology import Topology

Answer = Callable[[Tensor, Sequence[int]], Tensor]


class ExpertGroup:
    """The group of ranks that together hold all experts, and the ranks that hold the same experts as this one.

    Args:
        topology: this rank's place among all; neighbouring ranks form groups.
        timeout_seconds: longest wait for another rank of a group.

    Raises:
        LaunchError: the other ranks did not take part; creating groups is collective.
    """

    def __init__(self, topology: Topology, timeout_seconds: float) -> None:
        self.size, self.rank = topology.expert_ranks, topology.rank % topology.expert_ranks
        self._topology = topology
        timeout = timedelta(seconds=timeout_seconds)
        world, size = topology.world_size, self.size
        with rank_errors(topology, "forming expert groups"):
            # Every rank takes part in creating every group, including those it does not belong to.
            groups = [
                torch.distributed.new_group(range(first, first + size), timeout=timeout)
                for first in range(0, world, size)
            ]
            equals = [
                torch.distributed.new_group(range(first, world, size), timeout=timeout) for first in range(size)
            ]
        self._group = groups[topology.rank // size]
        self.equals = equals[self.rank]
        self.equal_ranks, self.equal_rank = world // size, topology.rank // size

    def own(self, x_EN: Tensor) -> Tensor:
        """Return the part x_eN of this rank's experts of a tensor of all experts."""
        return x_EN.chunk(self.size, dim=0)[self.rank]

    def whole(self, x_eN: Tensor) -> Tensor:
        """Gather the tensor x_EN of all experts from the ranks' parts. Collective."""
        whole_EN = x_eN.new_empty((self.size * len(x_eN), *x_eN.shape[1:]))
        with rank_errors(self._topology, "gathering experts"):
            torch.distributed.all_gather_into_tensor(whole_EN, x_eN.contiguous(), group=self._group)
        return whole_EN

    def answered(self, x_MC: Tensor, counts_E: Tensor, answer: Answer) -> Tensor:
        """Apply the experts of all ranks to tokens. Collective.

        Args:
            x_MC: tokens, sorted by expert.
            counts_E: number of tokens for each expert.
            answer: applies this rank's experts to tokens that are sorted by expert, given the number of tokens
                for each.

        Returns:
            The output of each token's expert, in the order of ``x_MC``.
        """
        sent_Se = counts_E.view(self.size, -1)
        received_Se = _all_to_all(sent_Se, None, None, self._group, self._topology)
        sends, receives = sent_Se.sum(dim=1).tolist(), received_Se.sum(dim=1).tolist()
        x_RC = _exchange(x_MC, sends, receives, self._group, self._topology)
        # Tokens arrive sorted by rank, then by expert; they have to be sorted by expert alone.
        expert_R = torch.arange(received_Se.numel(), device=x_MC.device) % received_Se.shape[1]
        order_R = expert_R.repeat_interleave(received_Se.flatten()).argsort(stable=True)
        answer_RC = answer(x_RC.index_select(0, order_R), received_Se.sum(dim=0).tolist())
        back_RC = answer_RC.index_select(0, order_R.argsort())
        return _exchange(back_RC, receives, sends, self._group, self._topology)


def _exchange(
    x_MC: Tensor, sends: Sequence[int], receives: Sequence[int], group: ProcessGroup, topology: Topology
) -> Tensor:
    received: Tensor = _AllToAll.apply(  # type: ignore[no-untyped-call]  # torch does not annotate it
        x_MC, sends, receives, group, topology
    )
    return received


class _AllToAll(torch.autograd.Function):
    """Send ``sends`` rows to each rank, receive ``receives`` from each; backward sends gradients back."""

    @staticmethod
    def forward(
        ctx: Any, x_MC: Tensor, sends: Sequence[int], receives: Sequence[int], group: ProcessGroup, topology: Topology
    ) -> Tensor:
        ctx.way_back = (receives, sends, group, topology)
        return _all_to_all(x_MC, sends, receives, group, topology)

    @staticmethod
    def backward(ctx: Any, grad_RC: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _all_to_all(grad_RC, *ctx.way_back), None, None, None, None


def _all_to_all(
    x_MN: Tensor, sends: Sequence[int] | None, receives: Sequence[int] | None, group: ProcessGroup, topology: Topology
) -> Tensor:
    """Exchange rows; without counts each rank sends every rank equally many."""
    sent_MN = x_MN.contiguous()
    rows = len(sent_MN) if receives is None else sum(receives)
    received_RN = sent_MN.new_empty((rows, *sent_MN.shape[1:]))
    with rank_errors(topology, "exchanging tokens between experts"):
        torch.distributed.all_to_all_single(received_RN, sent_MN, receives, sends, group=group)
    return received_RN
