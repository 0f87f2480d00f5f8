"""Where records go. ``metrics.jsonl`` is the source of truth; everything else is a view of it.

A line of ``metrics.jsonl`` is one JSON object with ``kind`` (``attempt``, ``step``, ``eval``, ``sample`` or
``note``) and ``attempt``; steps have a ``time`` (unix seconds). Lines are only appended: when a run resumes
or goes back, the steps it repeats appear again, and `read_metrics` takes the newest.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from distllm.errors import DataError, StorageError
from distllm.fsio import append_line_whole, atomic_write_text, read_json_lines, storage_errors
from distllm.observe.goodput import LastStep
from distllm.observe.ledger import Event
from distllm.observe.metrics import EvalRecord, StepRecord
from distllm.redact import redact_text

METRICS_FILE = "metrics.jsonl"
SAMPLES_DIRECTORY = "samples"
_TAIL_BLOCK = 1 << 16
_OF_A_STEP = ("step", "eval", "sample")
_REMEDY = "remove that line from the file, or restore the file from a copy"

_log = logging.getLogger(__name__)

Record = TypeVar("Record", StepRecord, EvalRecord)


class Sink(Protocol):
    """One destination of a run's records."""

    def log_step(self, record: StepRecord) -> None:
        """Take the record of one optimizer step."""

    def log_eval(self, record: EvalRecord) -> None:
        """Take the record of one validation pass."""

    def log_sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        """Take what the model wrote after ``prompt`` at ``step``."""

    def log_note(self, step: int, text: str) -> None:
        """Take one sentence about an event: a resume, a skipped step, a stop."""

    def log_event(self, event: Event) -> None:
        """Take one event of this attempt's ledger."""

    def close(self) -> None:
        """Deliver what is pending; the sink is not used again."""


class JsonlSink:
    """Appends every record to ``metrics.jsonl``, and writes each sample to a text file as well.

    A disk that fills up during the run does not end it: lines wait in memory, in order, and are written as
    soon as there is space; a warning is logged once.

    Args:
        run_dir: the run directory; created if it does not exist.
        attempt: number of this start of the run, from 1; see `last_attempt`.

    Raises:
        StorageError: the disk is full, read-only, or not permitted.
    """

    def __init__(self, run_dir: Path, attempt: int) -> None:
        self._path = run_dir / METRICS_FILE
        self._samples = run_dir / SAMPLES_DIRECTORY
        self._attempt = attempt
        self._warned = False
        with storage_errors(self._path):
            run_dir.mkdir(parents=True, exist_ok=True)
            _drop_torn_line(self._path)
            append_line_whole(self._path, self._line("attempt", time=time.time()))
        self._waiting: list[bytes] = []

    def log_step(self, record: StepRecord) -> None:
        """Append a ``step`` line."""
        self._append("step", time=time.time(), **asdict(record))

    def log_eval(self, record: EvalRecord) -> None:
        """Append an ``eval`` line."""
        self._append("eval", **asdict(record))

    def log_sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        """Append a ``sample`` line and write ``samples/step-000000100.txt``."""
        prompt, text = redact_text(prompt), redact_text(text)
        self._append("sample", step=step, tokens=tokens, prompt=prompt, text=text)
        with suppress(StorageError):  # the line above has it too
            atomic_write_text(self._samples / f"step-{step:09d}.txt", f"{prompt}{text}\n")

    def log_note(self, step: int, text: str) -> None:
        """Append a ``note`` line."""
        self._append("note", step=step, text=redact_text(text))

    def log_event(self, event: Event) -> None:
        """Do nothing: the ledger has it."""

    def close(self) -> None:
        """Write the lines that still wait; warn if they cannot be written."""
        self._write_waiting()
        if self._waiting:
            _log.warning("%d lines of %s could not be written and are lost", len(self._waiting), self._path)

    def _append(self, kind: str, **fields: Any) -> None:
        self._waiting.append(self._line(kind, **fields))
        self._write_waiting()

    def _write_waiting(self) -> None:
        try:
            while self._waiting:
                append_line_whole(self._path, self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            if not self._warned:
                self._warned = True
                _log.warning("%s cannot be written (%s); its lines wait for space", self._path, error)

    def _line(self, kind: str, **fields: Any) -> bytes:
        line = {"kind": kind, "attempt": self._attempt} | fields
        return json.dumps({key: _to_json(value) for key, value in line.items()}).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Metrics:
    """A run's history, each step once, in the order of steps."""

    steps: tuple[StepRecord, ...]
    evals: tuple[EvalRecord, ...]


def read_metrics(path: Path) -> Metrics:
    """Read ``metrics.jsonl``; for a step that was taken several times, return the newest record.

    That is the one of the newest attempt, and within an attempt, which may go back, the last in the file.

    Raises:
        DataError: the file does not exist, or a line is not a record of this version.
    """
    return Metrics(
        steps=_newest(path, "step", _step_record),
        evals=_newest(path, "eval", _eval_record),
    )


def replay(path: Path, sink: Sink, *, before_attempt: int) -> None:
    """Hand a sink the steps, evaluations and samples of earlier attempts, in the order they happened.

    Raises:
        DataError: a line is not a record of this version.
    """
    for line in metric_lines(path):
        kind, values = line["kind"], _without(line, "kind")
        if line["attempt"] >= before_attempt:
            continue
        if kind == "step":
            sink.log_step(_built(path, kind, _step_record, values))
        elif kind == "eval":
            sink.log_eval(_built(path, kind, _eval_record, values))
        elif kind == "sample":
            sink.log_sample(**_without(values, "attempt"))


def last_attempt(path: Path) -> int:
    """Return the number of the newest attempt in ``metrics.jsonl``; 0 if there is no such file.

    Raises:
        DataError: a line is not a record.
    """
    if not path.exists():
        return 0
    return max((line["attempt"] for line in metric_lines(path)), default=0)


def last_steps(path: Path) -> dict[int, LastStep]:
    """Return the last step of each attempt that ``metrics.jsonl`` holds; empty if there is no such file.

    Raises:
        DataError: a line is not a record.
    """
    steps = (line for line in metric_lines(path) if line["kind"] == "step") if path.exists() else ()
    return {line["attempt"]: LastStep(line["step"], line["time"]) for line in steps if "time" in line}


def highest_steps(path: Path) -> dict[str, int]:
    """Return the highest step of each kind of record in ``metrics.jsonl``; empty without the file.

    Raises:
        DataError: a line is not a record.
    """
    highest: dict[str, int] = {}
    for line in metric_lines(path) if path.exists() else ():
        highest[line["kind"]] = max(highest.get(line["kind"], 0), line.get("step", 0))
    return highest


def _newest(path: Path, kind: str, build: Callable[[dict[str, Any]], Record]) -> tuple[Record, ...]:
    newest: dict[int, dict[str, Any]] = {}
    for line in metric_lines(path):
        if line.pop("kind") != kind:
            continue
        known = newest.get(line["step"])
        if known is None or line["attempt"] >= known["attempt"]:
            newest[line["step"]] = line
    return tuple(_built(path, kind, build, newest[step]) for step in sorted(newest))


def _step_record(line: dict[str, Any]) -> StepRecord:
    return StepRecord(**_without(line, "time"))


def _eval_record(line: dict[str, Any]) -> EvalRecord:
    return EvalRecord(**_without(line, "attempt"))


def _built(path: Path, kind: str, build: Callable[[dict[str, Any]], Record], line: dict[str, Any]) -> Record:
    """Build a record of a line, unless another version wrote it."""
    try:
        return build(_from_json(line))
    except TypeError as error:
        raise DataError(
            f"a {kind} line of {path} has other fields than expected: {error}",
            where=str(path),
            remedy="read it with the version that wrote it",
        ) from error


def metric_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of ``metrics.jsonl``; a torn last one is left out.

    Raises:
        DataError: there is no such file, or a line of it is no record.
    """
    try:
        for line in read_json_lines(path):
            if not (isinstance(line, dict) and "attempt" in line and _has_step(line)):
                raise DataError("a line of the metrics is not a record", where=str(path), remedy=_REMEDY)
            yield line
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", where=str(path), remedy="train the run first") from error


def _has_step(line: dict[str, Any]) -> bool:
    """Whether a line says what it is of, and those of a step which one."""
    return "kind" in line and (line["kind"] not in _OF_A_STEP or isinstance(line.get("step"), int))


def _without(line: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != name}


_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def _to_json(value: Any) -> Any:
    """Return a non-finite number as a string: JSON cannot express it, and null would lose which it was."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(line: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _NON_FINITE.get(value, value) if isinstance(value, str) else value for key, value in line.items()
    }


def _drop_torn_line(path: Path) -> None:
    """Remove the incomplete last line that a killed writer left, so that the next line is not glued to it."""
    if not path.exists():
        return
    with path.open("r+b") as stream:
        size = position = stream.seek(0, 2)
        whole = 0
        while position > 0:
            start = max(0, position - _TAIL_BLOCK)
            stream.seek(start)
            newline = stream.read(position - start).rfind(b"\n")
            if newline >= 0:
                whole = start + newline + 1
                break
            position = start
        if whole != size:
            stream.truncate(whole)
