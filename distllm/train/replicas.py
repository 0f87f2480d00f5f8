"""Whether all ranks still hold the same weights: finds silent data corruption and names its rank.

Two comparisons, both of fingerprints:

- over ranks, after an update: with three ranks or more the odd one out is named; two that differ
  cannot tell which of them is right.
- over time, on each rank: between an update that was compared and the next one nothing may change
  the weights. A rank whose weights did change names itself, also among two.

Where weights are partitioned (stage 3) there are no replicas, and nothing is compared. Under stages 1
and 2 the weights are copied from the optimizer's partitions at every update, which heals a flipped
bit but not what was computed with it: only ``guard.fingerprint_every_steps=1`` sees every step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from distllm.dist.collectives import gather_over_ranks
from distllm.dist.engine import Engine
from distllm.dist.fingerprint import fingerprint
from distllm.dist.topology import Topology

_HALF = 32


@dataclass(frozen=True, slots=True)
class Corruption:
    """Weights that are not what they must be.

    ``ranks`` are those that hold them; empty where two sides differ and neither has a majority.
    """

    ranks: tuple[int, ...]
    what: str


class ReplicaCheck:
    """Compare the replicas of an engine's weights.

    Args:
        engine: whose weights.
        topology: this rank's place.
    """

    def __init__(self, engine: Engine, topology: Topology) -> None:
        self._engine = engine
        self._topology = topology
        self._kept: int | None = None

    def after_update(self) -> Corruption | None:
        """Compare the weights of all ranks now, and keep their fingerprint. Collective."""
        self._kept = own = fingerprint(self._engine.replicas())
        halves = [own >> _HALF, own & (1 << _HALF) - 1]
        everyone = gather_over_ranks(halves, self._topology)
        return odd_ones_out([(int(high) << _HALF) | int(low) for high, low in everyone])

    @property
    def kept(self) -> str:
        """Fingerprint of this rank's weights at the last `after_update`, as 16 hexadecimal digits."""
        return "" if self._kept is None else f"{self._kept:016x}"

    def changed_since(self) -> bool:
        """Whether this rank's weights are not those of the last `after_update`; asked once for each."""
        kept, self._kept = self._kept, None
        return kept is not None and fingerprint(self._engine.replicas()) != kept

    def forget(self) -> None:
        """Expect nothing of the weights: they were loaded again."""
        self._kept = None


def odd_ones_out(fingerprints: Sequence[int]) -> Corruption | None:
    """Return which ranks differ from the majority, given the fingerprint of each."""
    counted = Counter(fingerprints).most_common(2)
    if len(counted) == 1:
        return None
    (majority, votes), (_, others) = counted
    if votes == others:
        return Corruption((), f"the ranks hold {len(set(fingerprints))} different versions of the weights")
    odd = tuple(rank for rank, own in enumerate(fingerprints) if own != majority)
    return Corruption(odd, "the weights differ from those of the other ranks")


def flipped(changed_on: Sequence[float]) -> Corruption | None:
    """Return the ranks whose weights changed between two updates, given each rank's answer (0 or 1)."""
    ranks = tuple(rank for rank, changed in enumerate(changed_on) if changed)
    return Corruption(ranks, "the weights changed between two updates") if ranks else None
