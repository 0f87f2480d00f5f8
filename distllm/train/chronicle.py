"""What rank 0 writes to the ledger: events as they happen, and how the time between them was spent.

Time is not reported for each step: every few seconds, and before each event, one ``progress`` line holds the
seconds of each category since the previous one (see `distllm.observe.goodput`).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from distllm.errors import OutOfMemory
from distllm.observe.goodput import CATEGORIES, Category
from distllm.observe.ledger import Kind, Ledger
from distllm.train.clock import Phases

PROGRESS_SECONDS = 5.0


class Chronicle:
    """The events of one attempt. It writes nothing until `begin`, which only rank 0 calls.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._ledger: Ledger | None = None
        self._ended = False
        self._first = self._step = 0
        self._spent: dict[Category, float] = dict.fromkeys(CATEGORIES, 0.0)
        self._charged = 0.0
        self._reported_at = clock()

    def begin(self, ledger: Ledger, world_size: int) -> None:
        """Record the beginning of an attempt with ``world_size`` ranks."""
        self._ledger = ledger
        ledger.event("attempt", host=socket.gethostname(), pid=os.getpid(), world_size=world_size)

    def resumed(self, step: int) -> None:
        """Record that weights and position are those of ``step``; step 0 if the run begins."""
        self._first = self._step = step
        self.event("resumed", step=step)

    def count_step(self, step: int, phases: Phases, *, wasted: bool = False) -> None:
        """Charge the time of a step; the computation of a ``wasted`` step counts as rework.

        Args:
            step: steps taken so far, including this one if it counts.
            phases: how its time was spent.
            wasted: the update was dropped.
        """
        self._step = step
        self._charge("data", phases.data)
        self._charge("overhead", phases.loop)
        self._charge("rework" if wasted else "productive", phases.compute + phases.update)
        if self._clock() - self._reported_at >= PROGRESS_SECONDS:
            self._report()

    @contextmanager
    def charging(self, category: Category) -> Iterator[None]:
        """Charge the time of the block to ``category``, except for what is charged inside it."""
        began, within = self._clock(), self._charged
        try:
            yield
        finally:
            self._charge(category, self._clock() - began - (self._charged - within))

    def event(self, kind: Kind, **fields: Any) -> None:
        """Record the time so far, then one event."""
        self._report()
        if self._ledger is not None:
            self._ledger.event(kind, **fields)

    def rewound(self, to: int, **fields: Any) -> None:
        """Record that the steps after ``to`` are undone."""
        before = self._step
        self.event("rewind", step=before, to=to, **fields)
        self._first = self._step = to

    def end(self, kind: Kind, **fields: Any) -> None:
        """Record the event with which the attempt ends, unless it has ended already."""
        if not self._ended:
            self._ended = True
            self.event(kind, **fields)

    def failed(self, error: BaseException) -> None:
        """Record the error with which the attempt ends, and the step at which it happened."""
        kind: Kind = "oom" if isinstance(error, OutOfMemory) else "failed"
        cause = str(error).partition("\n")[0]
        self.end(kind, step=self._step, error=type(error).__name__, cause=cause)

    def _charge(self, category: Category, seconds: float) -> None:
        self._spent[category] += seconds
        self._charged += seconds

    def _report(self) -> None:
        self._reported_at = self._clock()
        spent = {name: round(seconds, 6) for name, seconds in self._spent.items() if seconds > 0}
        if self._ledger is not None and (spent or self._step != self._first):
            self._ledger.event("progress", first=self._first, step=self._step, seconds=spent)
        self._first = self._step
        self._spent = dict.fromkeys(CATEGORIES, 0.0)
