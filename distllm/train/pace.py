"""Which rank slows the others down, found from the seconds that each rank spends on its own work.

A rank's own work is reading data and its forward passes, in which it waits for no other rank. Backward
passes, and forward passes under ZeRO-3, contain collectives, in which all ranks wait for the slowest, so
their duration does not show which rank that is.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

WINDOW_STEPS = 16
_AGAIN_STEPS = 200
_LEAST_SECONDS = 0.01
"""Smaller differences are noise of the operating system."""


class OwnTime:
    """Measures the seconds that a rank spends on its own work, on its device.

    Args:
        device: where it computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the block; on a GPU, the execution of what it enqueues."""
        if self._on_gpu:
            begin, end = _event(), _event()
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began

    def lap(self) -> float:
        """Return the seconds measured since the last call; waits for the device."""
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
            self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Straggler:
    """A rank that slows the others down.

    Attributes:
        rank: the rank.
        seconds: the median of its own time in a step, over the window.
        typical: the median over ranks.
    """

    rank: int
    seconds: float
    typical: float

    def __str__(self) -> str:
        return (
            f"rank {self.rank} slows the others down: its own part of a step takes {self.seconds:.3f} s, "
            f"{self.seconds / max(self.typical, 1e-9):.1f} times as long as theirs"
        )


class Pace:
    """Compares the ranks over a window of steps, by medians: one slow step does not make a slow rank.

    Args:
        factor: how many times the others' time counts as too slow; 0 turns the comparison off.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._window: deque[list[float]] = deque(maxlen=WINDOW_STEPS)
        self._reported: dict[int, int] = {}
        self._steps = 0

    def slow_rank(self, seconds: Sequence[float]) -> Straggler | None:
        """Take each rank's own seconds of one step; return a slow rank that was not reported recently."""
        self._steps += 1
        self._window.append(list(seconds))
        if not self._factor or len(seconds) < 2 or len(self._window) < WINDOW_STEPS:
            return None
        medians = [statistics.median(own) for own in zip(*self._window, strict=True)]
        rank = max(range(len(medians)), key=medians.__getitem__)
        typical = statistics.median_low(medians)
        slow = medians[rank] > self._factor * typical and medians[rank] - typical > _LEAST_SECONDS
        last = self._reported.get(rank)
        if not slow or (last is not None and self._steps - last < _AGAIN_STEPS):
            return None
        self._reported[rank] = self._steps
        return Straggler(rank, medians[rank], typical)
