"""Whether all ranks still hold the same weights: detects silent data corruption and names its rank.

Two comparisons of fingerprints:

- between ranks, after an update: with three or more ranks the one that differs is named; with two it is
  unknown which one is right.
- over time, on each rank: nothing may change the weights between a compared update and the next one. A rank
  whose weights did change is named, even with two ranks.

With partitioned weights (stage 3) there are no replicas to compare. Under stages 1 and 2 the weights are
copied from the optimizer's partitions at every update, which repairs a flipped bit but not what was computed
with it: only ``guard.fingerprint_every_steps=1`` checks every step.
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
    """Corrupted weights.

    Attributes:
        ranks: the ranks that hold them; empty if no version of the weights has a majority.
        what: what was found.
    """

    ranks: tuple[int, ...]
    what: str


class ReplicaCheck:
    """Compares the replicas of an engine's weights.

    Args:
        engine: holds the weights.
        topology: this rank's place.
    """

    def __init__(self, engine: Engine, topology: Topology) -> None:
        self._engine = engine
        self._topology = topology
        self._kept: int | None = None

    def after_update(self) -> Corruption | None:
        """Compare the weights of all ranks now, and remember their fingerprint. Collective."""
        self._kept = own = fingerprint(self._engine.replicas())
        halves = [own >> _HALF, own & (1 << _HALF) - 1]
        everyone = gather_over_ranks(halves, self._topology)
        return odd_ones_out([(int(high) << _HALF) | int(low) for high, low in everyone])

    @property
    def kept(self) -> str:
        """Fingerprint of this rank's weights at the last `after_update`, as 16 hexadecimal digits."""
        return "" if self._kept is None else f"{self._kept:016x}"

    def changed_since(self) -> bool:
        """Whether this rank's weights have changed since the last `after_update`; checked once after each."""
        kept, self._kept = self._kept, None
        return kept is not None and fingerprint(self._engine.replicas()) != kept

    def forget(self) -> None:
        """Forget the fingerprint: the weights were loaded again."""
        self._kept = None


def odd_ones_out(fingerprints: Sequence[int]) -> Corruption | None:
    """Return the ranks that differ from the majority, given each rank's fingerprint; None if none does."""
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
