"""The sign of life of a rank: what it is doing, in a small file that another process reads.

A rank writes one fixed-size record over and over: a file that is created once needs no more space
when the disk is full. Moments are those of the monotonic clock, which all processes of a machine
share; they mean nothing on another machine.

A process has one heart, `HEART`, because it has one main thread to watch. It is silent until it is
opened, so that code below the training loop can always report to it.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

BEATS_DIRECTORY = "beats"
_RECORD_BYTES = 1024
_SHARD_CHARACTERS = 200
_REMEMBERED_STEPS = 512
PATIENT_PHASES = ("start", "evaluate", "save", "restore", "end")
"""Phases that may take as long as `cluster.timeout_seconds`; the others are parts of a step."""


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank was doing when it last moved.

    Attributes:
        rank: its number.
        host: the machine it runs on.
        pid: its process.
        step: optimizer steps taken so far.
        phase: of the loop; one of `PATIENT_PHASES`, or a part of a step.
        waits: what it waits for other ranks in; empty if it computes.
        collectives: exchanges between ranks entered so far.
        shard: the file that was opened last; empty if none was.
        steps_here: steps taken since the process started.
        p99_seconds: the 99th percentile of the seconds of its latest steps.
        moved: when it last went from one thing to the next (monotonic seconds).
    """

    rank: int
    host: str = ""
    pid: int = 0
    step: int = 0
    phase: str = "start"
    waits: str = ""
    collectives: int = 0
    shard: str = ""
    steps_here: int = 0
    p99_seconds: float = 0.0
    moved: float = 0.0


class Heart:
    """Writes the beats of this process; does nothing until `open`."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._beat = Beat(0)
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED_STEPS)
        self._lock = threading.Lock()

    def open(self, run_directory: Path, rank: int) -> None:
        """Begin to beat in ``run_directory``."""
        path = beat_path(run_directory, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        self._beat = Beat(rank, host=socket.gethostname(), pid=os.getpid())
        self._seconds.clear()
        self._move()

    @property
    def beats(self) -> bool:
        """Whether it is open."""
        return self._descriptor is not None

    def close(self) -> None:
        """Fall silent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def phase(self, name: str, step: int | None = None) -> None:
        """Say which part of the loop begins, after how many steps."""
        self._move(phase=name, step=self._beat.step if step is None else step)

    def count_step(self, seconds: float) -> None:
        """Count a step that took so long."""
        self._seconds.append(seconds)
        ordered = sorted(self._seconds)
        p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        self._move(steps_here=self._beat.steps_here + 1, p99_seconds=round(p99, 6))

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Say that the block is an exchange with the other ranks.

        Only the main thread is watched: what others exchange in the background is no sign of life.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        outer = self._beat.waits
        self._move(waits=what, collectives=self._beat.collectives + 1)
        try:
            yield
        finally:
            self._move(waits=outer)

    def reading(self, shard: Path) -> None:
        """Say which file is being opened; counts as a move only while the loop waits for data."""
        name = str(shard)[-_SHARD_CHARACTERS:]
        if self._beat.phase == "data":
            self._move(shard=name)
        else:
            self._move(shard=name, moved=self._beat.moved)

    def _move(self, **changes: object) -> None:
        if self._descriptor is None:
            return
        with self._lock:
            self._beat = replace(self._beat, **{"moved": time.monotonic(), **changes})  # type: ignore[arg-type]
            line = json.dumps(asdict(self._beat)).encode().ljust(_RECORD_BYTES)
            os.pwrite(self._descriptor, line, 0)


HEART = Heart()


def beat_path(run_directory: Path, rank: int) -> Path:
    """Return the file of a rank's beats."""
    return run_directory / BEATS_DIRECTORY / f"rank-{rank:05d}.json"


def read_beat(run_directory: Path, rank: int) -> Beat | None:
    """Return the latest beat of a rank; None if it has none yet, or is just writing it."""
    try:
        return Beat(**json.loads(beat_path(run_directory, rank).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
