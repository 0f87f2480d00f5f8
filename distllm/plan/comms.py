"""Bytes and seconds of collectives over a ring of ranks that fill nodes one after the other.

The cost is that of NCCL's own model: a start, a latency for each step of the ring, and bytes over the
slower of the two links.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from distllm.plan.machine import Machine

# Bandwidth of a tree over that of a ring, in NCCL's model (src/graph/tuning.cc).
_TREE_SHARE = 0.92 * 0.85


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that exchange something, and how many of them share a node."""

    size: int
    per_node: int

    @classmethod
    def strided(cls, size: int, stride: int, machine: Machine) -> Group:
        """Every ``stride``-th rank, ``size`` of them."""
        return cls(size, max(1, min(size, machine.per_node // stride)))

    @property
    def nodes(self) -> int:
        """Nodes that take part."""
        return -(-self.size // self.per_node)


def gathered_bytes(total: float, group: Group) -> float:
    """Return the bytes a rank receives when ``total`` bytes are gathered from, or scattered to, a group."""
    return total * (group.size - 1) / group.size


def gather_seconds(total: float, group: Group, machine: Machine) -> float:
    """Return the time of an all-gather or a reduce-scatter of ``total`` bytes."""
    if group.size == 1:
        return 0.0
    nodes = group.nodes
    seconds = machine.base_seconds
    seconds += (group.size - nodes) * machine.local_seconds + (nodes - 1) * machine.network_seconds
    # every link of a ring carries what one rank receives; a node's ranks each bring their own network card
    carried = gathered_bytes(total, group)
    local = carried / machine.local_bandwidth if group.per_node > 1 else 0.0
    network = carried / (group.per_node * machine.network_bandwidth) if nodes > 1 else 0.0
    return seconds + max(local, network) / machine.link_efficiency


def reduce_seconds(total: float, group: Group, machine: Machine) -> float:
    """Return the time of an all-reduce of ``total`` bytes: by a ring, or between nodes by a faster tree.

    A ring is a reduce-scatter and an all-gather. NCCL's model gives a tree 0.92 * 0.85 of a ring's bandwidth
    and latencies that grow with the logarithm of the nodes.
    """
    ring = 2 * gather_seconds(total, group, machine)
    if group.nodes == 1:
        return ring
    hops = (group.per_node - 1) * machine.local_seconds + math.log2(group.nodes) * machine.network_seconds
    network = total / (group.per_node * machine.network_bandwidth)
    local = total / machine.local_bandwidth if group.per_node > 1 else 0.0
    moved = max(local, network) / (_TREE_SHARE * machine.link_efficiency)
    return min(ring, machine.base_seconds + 2 * (hops + moved))


def send_seconds(total: float, far: bool, machine: Machine) -> float:
    """Return the time in which a rank hands ``total`` bytes to another, in its node or ``far`` from it."""
    if far:
        return machine.network_seconds + total / (machine.network_bandwidth * machine.link_efficiency)
    return machine.local_seconds + total / (machine.local_bandwidth * machine.link_efficiency)


def exchange_seconds(own: float, group: Group, machine: Machine) -> float:
    """Return the time of an all-to-all in which each rank holds ``own`` bytes."""
    if group.size == 1:
        return 0.0
    nodes = group.nodes
    local = gathered_bytes(own, group) / machine.local_bandwidth if group.per_node > 1 else 0.0
    network = own * (nodes - 1) / nodes / machine.network_bandwidth
    steps = machine.local_seconds if nodes == 1 else machine.network_seconds
    return machine.base_seconds + steps + max(local, network) / machine.link_efficiency
