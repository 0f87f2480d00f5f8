"""Which node makes a sum over all nodes slow: each sums with two neighbours alone; the better of them counts.

A slow node has no fast neighbour; its neighbours have one on their other side.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist


def rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """Return the neighbours on a ring in rounds, in none of which a node appears twice."""
    edges = [(node, (node + 1) % nodes) for node in range(nodes)]
    even, odd = edges[0 : nodes - nodes % 2 : 2], edges[1 : nodes - nodes % 2 : 2]
    return [part for part in (even, odd, edges[nodes - nodes % 2 :]) if part]


def best_of_pairs(tensor: torch.Tensor, node: int, nodes: int) -> float:
    """Sum ``tensor`` with either neighbour; return the better rate in bytes per second. Collective.

    Args:
        tensor: what is summed, on the device that training uses.
        node: number of this node.
        nodes: how many there are, at least three.
    """
    import torch.distributed as dist

    best = 0.0
    for pairs in rounds(nodes):
        groups = [dist.new_group(list(pair)) for pair in pairs]  # by all nodes, in the same order
        for pair, group in zip(pairs, groups, strict=True):
            if node in pair:
                dist.all_reduce(tensor, group=group)
                best = max(best, rate(tensor, group))
        dist.barrier()
    return best


def rate(tensor: torch.Tensor, group: dist.ProcessGroup | None = None) -> float:
    """Return the bytes per second at which ``tensor`` is summed once. Collective in ``group``."""
    import torch.distributed as dist

    began = time.perf_counter()
    dist.all_reduce(tensor, group=group)
    float(tensor[0])  # waits for the device
    return float(tensor.nbytes) / (time.perf_counter() - began)
