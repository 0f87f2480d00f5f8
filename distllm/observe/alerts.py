"""Which events of a run are worth an alert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distllm.observe.ledger import Event

Level = Literal["INFO", "WARN", "ERROR"]


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert.

    Attributes:
        title: alerts of the same title are grouped, and can be muted together.
        text: one sentence.
        level: severity.
    """

    title: str
    text: str
    level: Level


def alert_of(event: Event) -> Alert | None:
    """Return the alert that an event is, or None."""
    step, fields = f"step {int(event.number('step'))}", event.fields
    match event.kind:
        case "skipped" if fields.get("reason") == "non_finite":
            return Alert("NaN", f"{step} was skipped: loss {fields.get('loss')}", "WARN")
        case "skipped":
            return Alert("Spike", f"{step} was skipped: loss {fields.get('loss')}", "WARN")
        case "rewind":
            return Alert("Rewind", f"back to step {int(event.number('to'))}: {fields.get('why')}", "WARN")
        case "corruption":
            return Alert("Corruption", f"{step}: {fields.get('what')}", "ERROR")
        case "hang":
            return Alert("Stall", f"no rank made progress for {event.number('seconds'):.0f} s", "ERROR")
        case "straggler":
            return Alert("Stall", f"a rank is slower than the others: {dict(fields)}", "WARN")
        case "save_failed":
            return Alert("Disk", f"{step} could not be saved: {fields.get('why')}", "ERROR")
        case "oom":
            return Alert("Memory", str(fields.get("cause")), "ERROR")
        case "killed":
            return Alert("Killed", f"rank {fields.get('rank')} by {fields.get('signal')}", "ERROR")
        case "failed":
            return Alert("Failed", f"{fields.get('error')}: {fields.get('cause')}", "ERROR")
        case "stopped" if fields.get("why") != "train.stop_at_step":
            return Alert("Preempted", f"saved at {step}: {fields.get('why')}", "WARN")
        case "done":
            return Alert("Done", f"the run is complete at {step}", "INFO")
    return None
