"""A run's ledger for people: how its time was spent, and what happened when.

Teams of large runs wrote such logbooks by hand (OPT-175B, BLOOM): failure, cause, decision and cost, in
order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from distllm.observe.goodput import CATEGORIES, Account, Category, LastStep, account
from distllm.observe.ledger import Event
from distllm.units import count_of, format_duration

MEANING: Mapping[Category, str] = {
    "productive": "forward, backward and update of steps that counted",
    "checkpoint": "saving",
    "eval": "evaluating",
    "data": "waiting for batches",
    "overhead": "the rest of the running attempts",
    "rework": "computed and discarded",
    "hang": "hanging until it was detected",
    "restart": "starting, and going back to checkpoints",
    "idle": "not running, and not restarted",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a run's timeline: unix seconds, attempt, and a sentence."""

    time: float
    attempt: int
    text: str


@dataclass(frozen=True, slots=True)
class Logbook:
    """What a ledger says about a run.

    Attributes:
        name: name of the run.
        account: how its time was spent.
        samples: the last reported counts of its samples; empty if there are none.
        timeline: what happened, in order.
        span: unix seconds of the first and the last event.
    """

    name: str
    account: Account
    samples: Mapping[str, int]
    timeline: Sequence[Entry]
    span: tuple[float, float]

    def text(self) -> str:
        """Return it for a terminal."""
        lines = [self._headline(), ""]
        lines += [
            f"  {name:<12}{time:>10}{share:>8}   {meaning}" for name, time, share, meaning in self._rows()
        ]
        lines += ["", *self._facts(), "", "attempt  UTC"]
        lines += [f"{entry.attempt:>7}  {_clock(entry.time)}  {entry.text}" for entry in self.timeline]
        return "\n".join(lines)

    def markdown(self) -> str:
        """Return it as a file to keep."""
        lines = [f"# Logbook of {self.name}", "", self._headline(), "", "## Where the time went", ""]
        lines += ["| | time | share | |", "|---|---:|---:|---|"]
        lines += [f"| {name} | {time} | {share} | {meaning} |" for name, time, share, meaning in self._rows()]
        lines += ["", *(f"- {fact}" for fact in self._facts()), "", "## What happened", ""]
        lines += ["| UTC | attempt | |", "|---|---:|---|"]
        lines += [
            f"| {_clock(entry.time)} | {entry.attempt} | {_cell(entry.text)} |" for entry in self.timeline
        ]
        return "\n".join(lines) + "\n"

    def _headline(self) -> str:
        found = self.account
        return (
            f"run {self.name}: step {found.step} after {count_of(found.attempts, 'attempt')} and "
            f"{format_duration(found.wall)}, from {_clock(self.span[0])} to {_clock(self.span[1])} UTC"
        )

    def _rows(self) -> list[tuple[str, str, str, str]]:
        found = self.account
        rows = [
            (name, format_duration(seconds), _share(seconds, found.wall), MEANING[name])
            for name, seconds in ((name, found.seconds[name]) for name in CATEGORIES)
        ]
        return [*rows, ("wall", format_duration(found.wall), _share(found.wall, found.wall), "")]

    def _facts(self) -> list[str]:
        found, mttf = self.account, self.account.mttf_seconds
        causes = ", ".join(f"{count} x {cause}" for cause, count in sorted(found.restarts.items()))
        lines = [
            f"goodput {found.goodput:.1%}, effective training time (ETTR) {found.ettr:.1%}",
            f"{count_of(found.failures, 'failure')}, mean time to failure (MTTF) "
            f"{format_duration(mttf) if mttf is not None else 'unknown'}",
            f"{count_of(found.lost_steps, 'step')} lost; restarts: {causes or 'none'}",
        ]
        if self.samples:
            lines.append(_samples_line(self.samples))
        return lines


def read_logbook(name: str, events: Sequence[Event], last_steps: Mapping[int, LastStep]) -> Logbook:
    """Return the logbook of a run.

    Args:
        name: name of the run.
        events: its ledger, in file order; at least one event.
        last_steps: the last step of each attempt in the metrics.
    """
    reported = [event.fields["samples"] for event in events if _has_counts(event)]
    return Logbook(
        name=name,
        account=account(events, last_steps),
        samples=reported[-1] if reported else {},
        timeline=_timeline(events, last_steps),
        span=(events[0].time, events[-1].time),
    )


def _has_counts(event: Event) -> bool:
    return event.kind in ("saved", "stopped", "done") and isinstance(event.fields.get("samples"), Mapping)


def _samples_line(samples: Mapping[str, int]) -> str:
    parts = [f"{samples.get(name, 0)} {name}" for name in ("trained", "skipped", "excluded", "damaged")]
    promised = samples.get("promised", 0)
    gap = promised - sum(samples.get(name, 0) for name in ("trained", "skipped", "excluded", "damaged"))
    missing = f", {gap} UNACCOUNTED FOR" if gap else ""
    return f"samples: {promised} promised = {' + '.join(parts)}{missing}"


def _timeline(events: Iterable[Event], last_steps: Mapping[int, LastStep]) -> list[Entry]:
    entries: list[Entry] = []
    saved: list[Event] = []
    step = 0
    attempt = 0
    for event in events:
        if event.kind == "saved":
            saved.append(event)
        elif event.kind == "progress":
            step = int(event.number("step"))
        else:
            entries += _saves(saved)
            saved = []
            if event.kind == "attempt":
                known = last_steps.get(attempt)
                step = max(step, known.step) if known is not None else step
                attempt = event.attempt
            entries.append(Entry(event.time, event.attempt, _sentence(event, step)))
            if event.kind in ("resumed", "rewind"):
                step = int(event.number("to" if event.kind == "rewind" else "step"))
    return [*entries, *_saves(saved)]


def _saves(saved: Sequence[Event]) -> list[Entry]:
    """Combine consecutive checkpoints into one entry, at the time of the last."""
    if not saved:
        return []
    first, last = (int(event.number("step")) for event in (saved[0], saved[-1]))
    text = f"saved step {last}" if len(saved) == 1 else f"saved {len(saved)} times, steps {first} to {last}"
    return [Entry(saved[-1].time, saved[-1].attempt, text)]


def _sentence(event: Event, step: int) -> str:
    """Describe one event of a run that was at ``step``."""
    fields, at = event.fields, int(event.number("step"))
    match event.kind:
        case "attempt":
            ranks = count_of(int(event.number("world_size")), "rank")
            return f"attempt {event.attempt} on {fields.get('host')} (pid {fields.get('pid')}), {ranks}"
        case "resumed":
            undone = f"; {count_of(step - at, 'step')} to be taken again" if step > at else ""
            return f"continues from step {at}{undone}" if at or undone else "begins"
        case "rewind":
            back = int(event.number("to"))
            left_out = _range(fields.get("excluded"))
            return f"back from step {at} to {back}: {fields.get('why')}" + (
                f"; samples {left_out} are excluded" if left_out else ""
            )
        case "skipped":
            ranks = _list("rank", fields.get("ranks"))
            return (
                f"skipped step {at}: {fields.get('reason')}, loss {_figure(fields.get('loss'))}, "
                f"gradient norm {_figure(fields.get('grad_norm'))}, samples {_range(fields.get('samples'))}"
                + (f", on {ranks}" if ranks else "")
            )
        case "passed_over":
            return f"passed over step {at}: its samples {_range(fields.get('samples'))} have no target"
        case "corruption":
            where = _list("rank", fields.get("ranks")) or "an unknown rank"
            return f"corrupted memory on {where} after step {at}: {fields.get('what')}"
        case "failed" | "oom" if "error" in fields:
            return f"failed: {fields.get('error')}: {fields.get('cause')}"
        case "stopped":
            return f"stopped at step {at}: {fields.get('why')}"
        case "done":
            return f"done at step {at}"
        case "interval":
            return str(fields.get("formula"))
        case "hang" if "cause" in fields:
            return f"hangs: {fields['cause']}"
        case "killed" if "signal" in fields:
            return f"{_list('rank', [fields.get('rank')])} was killed by {fields['signal']}"
        case "restart" if "of" in fields:
            return f"the ranks are started again ({fields.get('restart')} of {fields['of']})"
        case "straggler" if "typical" in fields:
            slower = event.number("seconds") / max(event.number("typical"), 1e-9)
            who = f"rank {fields.get('rank')} on {fields.get('host')}"
            return f"{who} takes {slower:.1f} times as long as others"
        case _:
            return _fields(event)


def _fields(event: Event) -> str:
    """Return the kind of an event and all its fields."""
    told = ", ".join(f"{name} {_figure(value)}" for name, value in event.fields.items())
    return f"{event.kind.replace('_', ' ')}: {told}" if told else event.kind


def _list(noun: str, values: Any) -> str:
    return " and ".join(f"{noun} {value}" for value in values) if isinstance(values, list) else ""


def _range(values: Any) -> str:
    """Return a range [first, stop) as ``first to last``."""
    match values:
        case [int(first), int(stop)]:
            return f"{first} to {stop - 1}"
        case _:
            return ""


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _share(seconds: float, wall: float) -> str:
    return f"{seconds / wall:.1%}" if wall else "-"


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _cell(text: str) -> str:
    """Escape a text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
