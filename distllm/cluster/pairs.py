"""Which node slows a sum over all nodes: each node sums with each of its two neighbours.

The better rate counts. A slow node is slow with both neighbours; each of its neighbours is fast with the node
on its other side.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist


def rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """Return the pairs of neighbours on a ring in rounds; in a round no node appears twice."""
    edges = [(node, (node + 1) % nodes) for node in range(nodes)]
    even, odd = edges[0 : nodes - nodes % 2 : 2], edges[1 : nodes - nodes % 2 : 2]
    return [part for part in (even, odd, edges[nodes - nodes % 2 :]) if part]


def best_of_pairs(tensor: torch.Tensor, node: int, nodes: int) -> float:
    """Sum ``tensor`` with each neighbour; return the better rate in bytes per second. Collective.

    Args:
        tensor: the tensor to sum, on the device that training uses.
        node: number of this node.
        nodes: number of nodes, at least three.
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
