"""Bytes and seconds of collectives: a ring over ranks that fill nodes one after the other.

The cost is the one NCCL's own model uses: a start, a latency for each step of the ring, and bytes
over the slower of the two links.
"""

from __future__ import annotations

from dataclasses import dataclass

from distllm.plan.machine import Machine


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that exchange something: how many, and how many of them share a node."""

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
    local = gathered_bytes(total, group) / machine.local_bandwidth if group.per_node > 1 else 0.0
    # A node's ranks in the group each bring their own network card.
    network = total * (nodes - 1) / nodes / (group.per_node * machine.network_bandwidth)
    return seconds + max(local, network) / machine.link_efficiency


def reduce_seconds(total: float, group: Group, machine: Machine) -> float:
    """Return the time of an all-reduce of ``total`` bytes: a reduce-scatter and an all-gather."""
    return 2 * gather_seconds(total, group, machine)


def exchange_seconds(own: float, group: Group, machine: Machine) -> float:
    """Return the time of an all-to-all in which each rank holds ``own`` bytes."""
    if group.size == 1:
        return 0.0
    nodes = group.nodes
    local = gathered_bytes(own, group) / machine.local_bandwidth if group.per_node > 1 else 0.0
    network = own * (nodes - 1) / nodes / machine.network_bandwidth
    steps = machine.local_seconds if nodes == 1 else machine.network_seconds
    return machine.base_seconds + steps + max(local, network) / machine.link_efficiency
