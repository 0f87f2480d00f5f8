"""The sample at each position of a run: a pure function of (sources, phases, seed, position).

Memory does not grow with the number of samples: arithmetic finds a position's phase, its block of the
phase's pattern, the count of its source, and the epoch of that count. Phases are append-only and a
source's count continues from one phase to the next, so a later phase cannot change an earlier one, and
no sample is lost or repeated where a phase begins.

Shapes: N positions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distllm.data.order.pattern import pattern_of
from distllm.data.order.shuffle import EpochShuffle, SourceSamples
from distllm.fsio import digest_bytes


@dataclass(frozen=True, slots=True)
class Phase:
    """From position ``start`` on, sources are drawn by ``quotas``, one for each source."""

    start: int
    quotas: tuple[int, ...]


class SampleOrder:
    """The endless sequence of samples of a run, with random access both ways.

    Args:
        sources: the sources, in an order that never changes.
        phases: by ascending start, the first at 0.
        seed: root of all permutations.
        window_shards: see ``EpochShuffle``.

    Raises:
        ValueError: phases are not as described, or draw from a source without samples.
    """

    def __init__(
        self,
        sources: Sequence[SourceSamples],
        phases: Sequence[Phase],
        *,
        seed: int,
        window_shards: int | None = None,
    ) -> None:
        starts = [phase.start for phase in phases]
        if not phases or starts[0] != 0 or sorted(set(starts)) != starts:
            raise ValueError(f"phases begin at {starts}: the first at 0, each after the one before")
        for phase in phases:
            empty = [s.name for s, quota in zip(sources, phase.quotas, strict=True) if quota and not s.total]
            if empty:
                raise ValueError(f"no samples to draw from {', '.join(empty)}")
        self.sources = tuple(sources)
        self.phases = tuple(phases)
        self._seed, self._window_shards = seed, window_shards
        self._starts = np.array(starts, dtype=np.int64)
        self._patterns = [pattern_of(phase.quotas) for phase in phases]
        # how often each source was drawn before each phase
        self._before = [[0] * len(sources)]
        for pattern, start, stop in zip(self._patterns, starts, starts[1:], strict=False):
            before = self._before[-1]
            self._before.append([n + pattern.drawn(s, stop - start) for s, n in enumerate(before)])
        alone = len(sources) == 1
        self._shuffles = [
            EpochShuffle(
                source,
                seed=seed,
                path=("order",) if alone else ("order", source.name),
                window_shards=window_shards,
            )
            for source in sources
        ]

    @classmethod
    def single(cls, samples: int, seed: int) -> SampleOrder:
        """Return the order of one source of ``samples`` samples."""
        return cls([SourceSamples("", (samples,))], [Phase(0, (1,))], seed=seed)

    def locate(
        self, position_N: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return source_N, epoch_N and sample_N at these positions, which are not negative."""
        source_N, ordinal_N = self._draw(position_N)
        epoch_N, sample_N = np.zeros_like(ordinal_N), np.zeros_like(ordinal_N)
        for source in np.unique(source_N).tolist():
            chosen_N = np.flatnonzero(source_N == source)
            shuffle = self._shuffles[source]
            epoch_C, place_C = np.divmod(ordinal_N[chosen_N], shuffle.total)
            epoch_N[chosen_N] = epoch_C
            for epoch in np.unique(epoch_C).tolist():
                now_C = epoch_C == epoch
                sample_N[chosen_N[now_C]] = shuffle.sample_at(epoch, place_C[now_C])
        return source_N, epoch_N, sample_N

    def positions_of(self, source: int, sample: int, below: int) -> list[int]:
        """Return every position under ``below`` that holds this sample, ascending: one per epoch."""
        shuffle, found = self._shuffles[source], list[int]()
        drawn = self.drawn(below)[source]
        for epoch in range(-(-drawn // shuffle.total) if drawn else 0):
            ordinal = epoch * shuffle.total + shuffle.place_of(epoch, sample)
            if ordinal < drawn:
                found.append(self.position_of_draw(source, ordinal))
        return found

    def drawn(self, below: int) -> tuple[int, ...]:
        """Return how often each source was drawn before the position ``below``."""
        phase = max(0, int(np.searchsorted(self._starts, below)) - 1)
        slots = below - self.phases[phase].start
        pattern = self._patterns[phase]
        return tuple(n + pattern.drawn(s, slots) for s, n in enumerate(self._before[phase]))

    def position_of_draw(self, source: int, ordinal: int) -> int:
        """Return the position at which ``source`` is drawn for the ``ordinal``-th time, from 0.

        Raises:
            ValueError: it never is.
        """
        for phase, pattern, before, following in zip(
            self.phases, self._patterns, self._before, [*self._before[1:], None], strict=True
        ):
            if pattern.quotas[source] and (following is None or ordinal < following[source]):
                return phase.start + pattern.slot_of(source, ordinal - before[source])
        raise ValueError(f"source {self.sources[source].name} is not drawn {ordinal + 1} times")

    @property
    def digest(self) -> str:
        """Digest of everything the sequence depends on."""
        return self._digest(self.phases)

    def prefix_digest(self, position: int) -> str:
        """Digest of everything that the sequence before ``position`` depends on."""
        return self._digest(tuple(phase for phase in self.phases if phase.start < position))

    def _draw(self, position_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the source of each position and how often it was drawn before."""
        phase_N = np.searchsorted(self._starts, position_N, side="right") - 1
        source_N, ordinal_N = np.empty_like(position_N), np.empty_like(position_N)
        for phase in np.unique(phase_N).tolist():
            chosen_N = phase_N == phase
            source_C, drawn_C = self._patterns[phase].draw(position_N[chosen_N] - self._starts[phase])
            source_N[chosen_N] = source_C
            ordinal_N[chosen_N] = np.array(self._before[phase], dtype=np.int64)[source_C] + drawn_C
        return source_N, ordinal_N

    def _digest(self, phases: tuple[Phase, ...]) -> str:
        window = self._window_shards
        facts = {
            "seed": self._seed,
            "window_shards": window,
            "sources": [[s.name, s.total if window is None else list(s.shards)] for s in self.sources],
            "phases": [[phase.start, list(phase.quotas)] for phase in phases],
        }
        return digest_bytes(json.dumps(facts, sort_keys=True).encode())
