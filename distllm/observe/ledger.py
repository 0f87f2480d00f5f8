"""``ledger.jsonl``: what happened to a run, over all its attempts, in the order it happened.

Each line is one event, a JSON object with ``time`` (unix seconds), ``attempt`` and ``kind``. Rank 0
and the process that supervises the ranks append to the same file, so nothing is ever rewritten: each
line is one ``O_APPEND`` write, and an incomplete line that a killed writer or a full disk left behind is
closed with a line break before the next. Readers drop incomplete lines: they are not valid JSON.

Imports no torch: the supervisor and commands on a login node use it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from distllm.errors import DataError
from distllm.redact import redacted

LEDGER_FILE = "ledger.jsonl"

Kind = Literal[
    "attempt",  # rank 0 owns the run directory: host, pid, world_size
    "resumed",  # weights and position are there: step; 0 for a run that begins
    "progress",  # where the time since the line before went: first, step, seconds by category
    "saved",  # a checkpoint exists: step
    "save_failed",  # it does not: step, why
    "interval",  # the steps between checkpoints were derived again: steps, formula
    "skipped",  # an update was dropped: reason, loss, grad_norm, samples [first, stop), ranks
    "passed_over",  # none of a step's samples has a target: step, samples [first, stop), damaged
    "corruption",  # weights were changed by a fault: ranks, what
    "rewind",  # back to a checkpoint: step before, to, excluded samples [first, stop) or None
    "oom",  # the attempt ended because memory ran out: error, cause, step
    "straggler",  # a rank is slower than the others: rank, host, seconds, typical
    "hang",  # no rank makes progress: seconds since one did, and what is known of the cause
    "killed",  # a rank died: rank, signal (its name)
    "restart",  # the supervisor starts the ranks again, however long that takes
    "failed",  # the attempt ended with an error: error, cause, step
    "stopped",  # it ended before the run did, on request: step, why
    "done",  # the run is complete: step, samples
]
KINDS: frozenset[str] = frozenset(get_args(Kind))
ENDS: tuple[Kind, ...] = ("done", "stopped", "failed", "oom")
"""Kinds with which an attempt records its own end."""

_BLOCK = 1 << 15
_log = logging.getLogger(__name__)


class Ledger:
    """Appends the events of one attempt.

    A ledger that cannot be written must not end the training: the event is lost, with one warning.

    Args:
        path: the file; its directory exists.
        attempt: number of this start of the run, from 1.
        warn: gets one sentence when an event could not be written; by default it is logged.
        watch: called with each event as well, written or not.
    """

    def __init__(
        self,
        path: Path,
        attempt: int,
        warn: Callable[[str], None] | None = None,
        watch: Callable[[Event], None] | None = None,
    ) -> None:
        self._path = Path(path)
        self._attempt = attempt
        self._warn = warn if warn is not None else _log.warning
        self._watch = watch
        self._warned = False

    def event(self, kind: Kind, **fields: Any) -> None:
        """Append one event.

        Args:
            kind: what happened.
            fields: the details, as JSON values; numbers that are not finite become strings.

        Raises:
            ValueError: ``kind`` is not one of `Kind`, or a field is called ``time`` or ``attempt``.
        """
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is not a kind of event; there are {', '.join(sorted(KINDS))}")
        if taken := fields.keys() & {"time", "attempt"}:
            raise ValueError(f"{', '.join(sorted(taken))} cannot be given: every event has its own")
        now, plain = time.time(), {name: _plain(value) for name, value in redacted(fields).items()}
        content = json.dumps({"time": now, "attempt": self._attempt, "kind": kind} | plain)
        try:
            _append(self._path, content.encode())
        except OSError as error:
            if not self._warned:
                self._warned = True
                self._warn(f"the ledger cannot be written ({error}); training continues without it")
        if self._watch is not None:
            self._watch(Event(now, self._attempt, kind, plain))


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a ledger: when (unix seconds), in which attempt, what happened, and its details."""

    time: float
    attempt: int
    kind: Kind
    fields: Mapping[str, Any] = field(default_factory=dict)

    def number(self, name: str, default: float = 0.0) -> float:
        """Return the field ``name`` if it is a finite number, else ``default``."""
        return number_in(self.fields, name, default)


def number_in(fields: Mapping[str, Any], name: str, default: float = 0.0) -> float:
    """Return the entry ``name`` if it is a finite number, else ``default``."""
    value: Any = fields.get(name)
    return float(value) if _is_number(value) else default


def read_events(path: Path) -> list[Event]:
    """Read a ledger in file order; incomplete lines are dropped.

    Raises:
        DataError: the file does not exist, is not a regular file, or holds a line that is not an event of
            this version.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a device may have no end
        raise DataError(f"{path} is not a regular file", where=str(path), remedy="move it away")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist",
            where=str(path),
            remedy="a run writes it when it starts: distllm train",
        ) from error
    events = []
    *closed, _torn = content.split(b"\n")
    for number, line in enumerate(closed, 1):
        try:
            values = json.loads(line) if line else None
        except ValueError as error:
            if line.startswith(b"{"):
                continue  # incomplete: its writer died, or the disk was full
            raise _no_event(path, number) from error
        if values is not None:
            events.append(_event(values, path, number))
    return events


def last_event(path: Path, kinds: Collection[str]) -> Event | None:
    """Return the newest event of one of these kinds, or None; the file is read from its end.

    Lines that are not events are skipped, so that one damaged ledger does not hide other runs from a command
    that lists hundreds of them.
    """
    path = Path(path)
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        end, block = stream.seek(0, os.SEEK_END), _BLOCK
        while True:
            first = max(0, end - block)
            stream.seek(first)
            *closed, _torn = stream.read(end - first).split(b"\n")
            for line in reversed(closed[first > 0 :]):
                with contextlib.suppress(ValueError, DataError):
                    event = _event(json.loads(line), path, 0)
                    if event.kind in kinds:
                        return event
            if first == 0:
                return None
            block *= 8


def _event(values: Any, path: Path, number: int) -> Event:
    if not isinstance(values, dict) or values.get("kind") not in KINDS:
        raise _no_event(path, number)
    when, attempt = values.pop("time", None), values.pop("attempt", None)
    if not (_is_number(when) and isinstance(attempt, int)):
        raise _no_event(path, number)
    return Event(float(when), attempt, values.pop("kind"), values)


def _no_event(path: Path, number: int) -> DataError:
    return DataError(
        f"line {number} of {path} is not an event",
        where=f"{path}:{number}",
        remedy="remove the line, or read the ledger with the version of distllm that wrote it",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """Return a number that JSON cannot express (NaN, infinity) as a string, as the metrics do."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _append(path: Path, line: bytes) -> None:
    """Append a line with one write, after a line break if the file ends with an incomplete line."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        content = (b"\n" if torn else b"") + line + b"\n"
        if (written := os.write(descriptor, content)) != len(content):
            raise OSError(f"only {written} of {len(content)} bytes fit on the disk")
    finally:
        os.close(descriptor)
