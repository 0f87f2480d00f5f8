"""The heartbeat of a rank: what it is doing, in a small file that another process reads.

A rank overwrites one fixed-size record, so that a full disk does not stop the heartbeat. Times are
those of the monotonic clock, which all processes of a machine share; they mean nothing on another machine.

A process has one heartbeat, `HEARTBEAT`, because only its main thread is watched. It writes nothing
until it is opened, so that code below the training loop can always report to it.
"""

from __future__ import annotations

import contextlib
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
    """What a rank was doing when it last made progress.

    Attributes:
        rank: its number.
        host: the machine it runs on.
        pid: its process.
        step: optimizer steps taken so far.
        phase: of the loop; one of `PATIENT_PHASES`, or a part of a step.
        waits: the collective in which it waits for other ranks; empty while it computes.
        collectives: collectives entered so far.
        shard: the file that was opened last; empty if none was.
        steps_here: steps taken since the process started.
        p99_seconds: the 99th percentile of the duration of its latest steps.
        moved: when it last made progress (monotonic seconds).
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


class Heartbeat:
    """Writes the beats of this process; does nothing until `open`.

    A beat that cannot be written is lost, and the rank goes on: whoever reads the file judges its age.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._beat = Beat(0)
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED_STEPS)
        self._lock = threading.Lock()

    def open(self, run_directory: Path, rank: int) -> None:
        """Start writing in ``run_directory``."""
        path = beat_path(run_directory, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        self._beat = Beat(rank, host=socket.gethostname(), pid=os.getpid())
        self._seconds.clear()
        self._move()

    @property
    def is_open(self) -> bool:
        """Whether beats are written."""
        return self._descriptor is not None

    def close(self) -> None:
        """Stop writing."""
        with self._lock:  # a thread that is writing must not write to a descriptor that is used again
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def phase(self, name: str, step: int | None = None) -> None:
        """Report which part of the loop begins, and after how many steps."""
        self._move(phase=name, step=self._beat.step if step is None else step)

    def count_step(self, seconds: float) -> None:
        """Count a step and its duration."""
        self._seconds.append(seconds)
        ordered = sorted(self._seconds)
        p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        self._move(steps_here=self._beat.steps_here + 1, p99_seconds=round(p99, 6))

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Report that the block is a collective with the other ranks.

        Only the main thread is watched: collectives of background threads are not progress of the run.
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
        """Report which file is being opened; this is progress only while the loop waits for data."""
        name = str(shard)[-_SHARD_CHARACTERS:]
        if self._beat.phase == "data":
            self._move(shard=name)
        else:
            self._move(shard=name, moved=self._beat.moved)

    def _move(self, **changes: object) -> None:
        with self._lock:
            if self._descriptor is None:
                return
            self._beat = replace(self._beat, **{"moved": time.monotonic(), **changes})  # type: ignore[arg-type]
            line = json.dumps(asdict(self._beat)).encode().ljust(_RECORD_BYTES)
            with contextlib.suppress(OSError):
                os.pwrite(self._descriptor, line, 0)


HEARTBEAT = Heartbeat()


def beat_path(run_directory: Path, rank: int) -> Path:
    """Return the file of a rank's beats."""
    return run_directory / BEATS_DIRECTORY / f"rank-{rank:05d}.json"


def read_beat(run_directory: Path, rank: int) -> Beat | None:
    """Return the latest beat of a rank; None if there is none yet, or it is being written."""
    try:
        return Beat(**json.loads(beat_path(run_directory, rank).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
