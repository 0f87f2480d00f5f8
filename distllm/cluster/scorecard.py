"""How a run handled the faults of a drill, read from the ledger and the metrics that every run writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distllm.cluster.drills import NUMBERS, SIGNS, Drill, Equality
from distllm.config.faults import Fault
from distllm.observe.goodput import Account, account
from distllm.observe.ledger import LEDGER_FILE, Event, read_events
from distllm.observe.metrics import StepRecord
from distllm.observe.sinks import METRICS_FILE, last_steps, read_metrics

_EARLY_SECONDS = 0.5
_RELATIVE = 1e-4
LIMITS = {"kill": 5.0}
"""Seconds within which a kind of fault must be noticed, if not the caller's limit."""

EXIT_CODES = {"term": (75,), "corrupt_shard": (65,), "missing_shard": (64, 65)}
"""Exit codes with which a run may end at a fault that it does not survive without a new start."""


@dataclass(frozen=True, slots=True)
class Row:
    """One fault.

    Attributes:
        fault: in the notation of ``chaos.faults``, or its kind.
        cause: what the run reported.
        detected_seconds: from the fault to that report.
        lost_steps: steps before the fault that had to be taken again.
        back_seconds: from the report until weights and position were restored.
        exit_code: of the command in which it happened.
        equality: how the run compares with the one without faults.
        problem: why the row fails; empty if it does not.
    """

    fault: str
    cause: str
    detected_seconds: float | None
    lost_steps: int | None
    back_seconds: float | None
    exit_code: int
    equality: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """One start of a run: its exit code, and when it began and ended (unix seconds)."""

    code: int
    began: float
    ended: float


def score(
    drill: Drill, directory: Path, commands: Sequence[Command], reference: Path, limit_seconds: float
) -> list[Row]:
    """Judge each fault that the ranks of a run inflicted on themselves.

    Args:
        drill: the plan.
        directory: the run directory.
        commands: the starts of the run.
        reference: the run directory of the run without faults.
        limit_seconds: time within which a fault must be noticed, unless `LIMITS` has another.
    """
    events = read_events(directory / LEDGER_FILE) if (directory / LEDGER_FILE).exists() else []
    equality = compare(directory, reference, drill.steps)
    survived = bool(commands) and commands[-1].code == 0
    rows = []
    for fault in drill.faults:
        mark = directory / "chaos" / f"{fault.kind}@{fault.step}:{fault.rank}"
        if not mark.exists():
            rows.append(
                Row(str(fault), "", None, None, None, commands[-1].code, equality, "it never happened")
            )
            continue
        row = _row(fault, mark.stat().st_mtime, events, commands, equality)
        problem = _problem(fault, row, drill.equality, survived, limit_seconds)
        rows.append(Row(**(asdict(row) | {"problem": problem})))
    return rows


def compare(directory: Path, reference: Path, steps: int) -> str:
    """Compare every step up to ``steps`` with the reference: ``bit-equal``, ``close`` or ``different``."""
    if not ((directory / METRICS_FILE).exists() and (reference / METRICS_FILE).exists()):
        return "different"
    own, other = (
        {record.step: record for record in read_metrics(path / METRICS_FILE).steps}
        for path in (directory, reference)
    )
    wanted = range(1, steps + 1)
    if not all(step in own and step in other for step in wanted):
        return "different"
    if all(_bits(own[step]) == _bits(other[step]) for step in wanted):
        return "bit-equal"
    close = all(
        own[step].batch_digest == other[step].batch_digest
        and abs(own[step].loss - other[step].loss) <= _RELATIVE * abs(other[step].loss)
        for step in wanted
    )
    return "close" if close else "different"


def account_of(directory: Path) -> Account:
    """Return the split of the time of a run."""
    return account(read_events(directory / LEDGER_FILE), last_steps(directory / METRICS_FILE))


def as_json(rows: Sequence[Row], runs: Mapping[str, Path], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scorecard as a document: ``rows``, ``runs`` and what the drill was made of."""
    return {
        "version": 1,
        **facts,
        "passed": not any(row.problem for row in rows),
        "rows": [asdict(row) for row in rows],
        "runs": {
            name: {
                "goodput": round(found.goodput, 4),
                "ettr": round(found.ettr, 4),
                "wall_seconds": round(found.wall, 2),
                "lost_steps": found.lost_steps,
                "restarts": dict(found.restarts),
            }
            for name, path in runs.items()
            if (path / LEDGER_FILE).exists()
            for found in (account_of(path),)
        },
    }


def as_text(rows: Sequence[Row]) -> str:
    """Return the scorecard as a table for people."""
    head = ("fault", "noticed", "lost steps", "back after", "result", "exit", "verdict")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(line.rstrip() for line in table)


def _cells(row: Row) -> tuple[str, ...]:
    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f} s"

    lost = "-" if row.lost_steps is None else str(row.lost_steps)
    verdict = f"FAILED: {row.problem}" if row.problem else "ok"
    noticed, back = seconds(row.detected_seconds), seconds(row.back_seconds)
    return (row.fault, noticed, lost, back, row.equality, str(row.exit_code), verdict)


def _bits(record: StepRecord) -> tuple[Any, ...]:
    numbers = (record.loss, record.grad_norm, record.lr)
    return (*map(repr, numbers), record.batch_digest, record.chain)


def _row(
    fault: Fault, moment: float, events: Sequence[Event], commands: Sequence[Command], equality: str
) -> Row:
    sign = next(
        (
            event
            for event in events
            if event.kind in SIGNS.get(fault.kind, ()) and event.time >= moment - _EARLY_SECONDS
        ),
        None,
    )
    code = next((each.code for each in commands if each.began <= moment <= each.ended), commands[-1].code)
    if sign is None:
        return Row(str(fault), "", None, None, None, code, equality)
    back = next((e for e in events if e.kind in ("resumed", "rewind") and e.time >= sign.time), None)
    reached = int(sign.number("step", fault.step - 1)) if sign.kind == "stopped" else fault.step - 1
    went_back = back is not None and fault.kind not in (*NUMBERS, "slow", "disk_full")
    lost = back_seconds = None
    if back is not None and went_back:
        lost = max(0, reached - int(back.number("to" if back.kind == "rewind" else "step")))
        back_seconds = back.time - sign.time
    cause = str(sign.fields.get("cause") or sign.fields.get("what") or sign.fields.get("reason") or sign.kind)
    return Row(str(fault), cause, max(0.0, sign.time - moment), lost or 0, back_seconds, code, equality)


def _problem(fault: Fault, row: Row, wanted: Equality, survived: bool, limit_seconds: float) -> str:
    limit = LIMITS.get(fault.kind, limit_seconds)
    if not survived:
        return "the run did not reach its end"
    if fault.kind in SIGNS and row.detected_seconds is None:
        return "it was not noticed"
    if row.detected_seconds is not None and row.detected_seconds > limit:
        return f"noticed after more than {limit:.0f} s"
    if wanted == "exact" and row.equality != "bit-equal":
        return "the steps differ from those of the run without faults"
    if wanted == "close" and row.equality == "different":
        return "the steps are far from those of the run without faults"
    expected = EXIT_CODES.get(fault.kind)
    if expected is not None and row.exit_code not in expected:
        return f"exit code {row.exit_code} instead of {expected[0]}"
    return ""
