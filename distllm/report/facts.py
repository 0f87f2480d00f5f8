"""Everything that the report of a run shows, read from its directory only.

The columns of steps and evaluations are read without the record classes, so that reports of older and
newer runs work.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from distllm.config.explain import EXPLANATION_FILE, read_explanation
from distllm.errors import DataError, DistllmError
from distllm.fsio import read_json
from distllm.observe.ledger import LEDGER_FILE, Event, read_events
from distllm.observe.logbook import Logbook, read_logbook
from distllm.observe.sinks import METRICS_FILE, last_steps, metric_lines

ENVIRONMENT_FILE = "environment.json"
MAX_POINTS = 1500
MAX_SPIKES = 20
MAX_BATCH_CHARS = 20_000

Row = dict[str, Any]
BatchText = Callable[[int, int], str]
"""Text of the batch of a step: (step, its first sample in the global order)."""


@dataclass(frozen=True, slots=True)
class Spike:
    """A step that the guard skipped, and the text of its batch."""

    step: int
    reason: str
    loss: Any
    grad_norm: Any
    attempt: int
    ranks: Sequence[int]
    text: str


@dataclass(frozen=True, slots=True)
class Try:
    """One attempt on the time axis (unix seconds): how it ended; empty if unknown."""

    number: int
    begin: float
    end: float
    ending: str


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run.

    Attributes:
        name: of the run.
        path: its directory.
        status: ``done``, ``stopped``, ``failed`` or ``unfinished``.
        steps: step lines, each step once, from its newest attempt.
        evals: evaluation lines, each step once; each part of a measure has its own column
            (``exposure_x64``).
        samples: what the model wrote, oldest first.
        logbook: times and events; None without a ledger.
        events: the ledger.
        tries: attempts on the time axis.
        spikes: skipped steps with their batches.
        config: `explain.json`: value, origin and help of every key.
        environments: the environment of each attempt, by its number.
    """

    name: str
    path: Path
    status: str
    steps: Sequence[Row]
    evals: Sequence[Row]
    samples: Sequence[Row]
    logbook: Logbook | None
    events: Sequence[Event]
    tries: Sequence[Try]
    spikes: Sequence[Spike]
    config: Mapping[str, Row]
    environments: Mapping[str, Row] = field(default_factory=dict)


def gather(path: Path, batch_text: BatchText) -> RunFacts:
    """Read a run directory.

    Args:
        path: the directory.
        batch_text: gives the text of a step's batch.

    Raises:
        DataError: there are no metrics, or they or the ledger cannot be read.
    """
    lines = list(metric_lines(path / METRICS_FILE))
    steps, evals = _newest(lines, "step"), [_parted(row) for row in _newest(lines, "eval")]
    if not steps and not evals:
        raise DataError(
            f"{path} holds no step", where=str(path / METRICS_FILE), remedy="train it first: distllm train"
        )
    ledger = path / LEDGER_FILE
    events = read_events(ledger) if ledger.exists() else []
    tries = _tries(events)
    book = read_logbook(path.name, events, last_steps(path / METRICS_FILE)) if events else None
    environments, explained = path / ENVIRONMENT_FILE, path / EXPLANATION_FILE
    return RunFacts(
        name=path.resolve().name,
        path=path,
        status=_status(events),
        steps=_marked(steps),
        evals=evals,
        samples=_newest(lines, "sample"),
        logbook=book,
        events=events,
        tries=tries,
        spikes=_spikes(events, batch_text),
        config=read_explanation(explained) if explained.exists() else {},
        environments=read_json(environments) if environments.exists() else {},
    )


def columns(rows: Sequence[Row], limit: int = MAX_POINTS) -> dict[str, list[Any]]:
    """Return rows as columns of finite numbers, None elsewhere, at most about ``limit`` of them.

    A long run is divided into intervals. Each keeps its first step, those with the lowest and the highest
    loss, and the skipped ones, so that a spike of a single step stays visible.
    """
    kept = _thinned(rows, limit)
    names = sorted({name for row in kept for name, value in row.items() if _is_number(value)})
    return {name: [_finite(row.get(name)) for row in kept] for name in names}


def _newest(lines: Sequence[Row], kind: str) -> list[Row]:
    """Return the lines of a kind by step: of several of one step, the last (the newest attempt's)."""
    found = {line["step"]: line for line in lines if line["kind"] == kind}
    return [found[step] for step in sorted(found)]


def _parted(row: Row) -> Row:
    """Return an evaluation with each part of a measure in a column of its own."""
    found: Row = {}
    for name, value in row.items():
        found |= (
            {f"{name}_{part}": one for part, one in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return found


def _marked(steps: Sequence[Row]) -> list[Row]:
    """Add what curves need: whether a step was skipped, and the seconds of training before it."""
    first = min((row["time"] for row in steps if "time" in row), default=0.0)
    before: list[Row] = [{}, *steps[:-1]]
    return [
        {
            **row,
            "skipped": int(row.get("skipped_steps", 0) > previous.get("skipped_steps", 0)),
            "time": row.get("time", first) - first,
            "perplexity": _perplexity(row.get("loss")),
        }
        for previous, row in zip(before, steps, strict=True)
    ]


def _perplexity(loss: Any) -> float | None:
    return math.exp(loss) if _finite(loss) is not None and loss < 700 else None


def _thinned(rows: Sequence[Row], limit: int) -> list[Row]:
    if len(rows) <= limit:
        return list(rows)
    kept: set[int] = {0, len(rows) - 1}
    size = max(1, 3 * len(rows) // limit)
    for start in range(0, len(rows), size):
        here = range(start, min(start + size, len(rows)))
        finite = [index for index in here if _finite(rows[index].get("loss")) is not None] or [start]
        kept |= {start, min(finite, key=_loss_of(rows)), max(finite, key=_loss_of(rows))}
        kept |= {index for index in here if rows[index].get("skipped")}
    return [rows[index] for index in sorted(kept)]


def _loss_of(rows: Sequence[Row]) -> Callable[[int], float]:
    return lambda index: float(rows[index].get("loss") or 0.0)


def _tries(events: Sequence[Event]) -> list[Try]:
    starts = [index for index, event in enumerate(events) if event.kind == "attempt"]
    found = []
    for begin, stop in pairwise([*starts, len(events)]):
        here = events[begin:stop]
        endings = [e.kind for e in here if e.kind in ("done", "stopped", "failed", "oom", "killed", "hang")]
        found.append(Try(here[0].attempt, here[0].time, here[-1].time, endings[0] if endings else ""))
    return found


def _status(events: Sequence[Event]) -> str:
    for event in reversed(events):
        if event.kind in ("done", "stopped"):
            return event.kind
        if event.kind in ("failed", "oom", "killed", "hang"):
            return "failed"
        if event.kind in ("attempt", "resumed", "progress", "saved"):
            return "unfinished"
    return "unfinished"


def _spikes(events: Sequence[Event], batch_text: BatchText) -> list[Spike]:
    skipped = [event for event in events if event.kind == "skipped"]
    return [_spike(event, batch_text) for event in skipped[:MAX_SPIKES]]


def _spike(event: Event, batch_text: BatchText) -> Spike:
    step, samples = int(event.number("step")), event.fields.get("samples")
    try:
        text = batch_text(step, samples[0]) if isinstance(samples, list) and samples else ""
    except DistllmError as error:
        text = f"the batch cannot be shown: {error.cause}"
    if len(text) > MAX_BATCH_CHARS:
        text = text[:MAX_BATCH_CHARS] + f"\n… {len(text) - MAX_BATCH_CHARS} more characters"
    ranks = event.fields.get("ranks")
    return Spike(
        step=step,
        reason=str(event.fields.get("reason", "")),
        loss=event.fields.get("loss"),
        grad_norm=event.fields.get("grad_norm"),
        attempt=event.attempt,
        ranks=ranks if isinstance(ranks, list) else [],
        text=text,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: Any) -> float | None:
    return value if _is_number(value) and math.isfinite(value) else None


def to_script(value: Any) -> str:
    """Return JSON that can stand inside a script element: no text in it can end the element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
