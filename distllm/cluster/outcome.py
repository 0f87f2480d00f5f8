"""How a start of a run ended, from what its ranks recorded, and what should happen next.

The exit code of ``srun`` is not enough: with ``--kill-on-bad-exit`` it sends TERM to ranks that exit a
little later than the first one, and returns the code of that. The ledger and one small file per rank
say what happened.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distllm.cluster.control import AGAIN
from distllm.cluster.local import signal_of
from distllm.errors import DataError
from distllm.observe.ledger import ENDS, LEDGER_FILE, Event, last_event, read_events

EXITS_VARIABLE = "DISTLLM_EXITS"
NEVER_AGAIN = (64, 65)
"""Exit codes of what would fail again: configuration and damaged data (see `distllm.errors`)."""

SAME_FAILURE = 64
"""Exit code of a run that fails at the same step for the same cause: something must be changed first."""

Kind = Literal["done", "stopped", "again", "hopeless", "failed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a start ended.

    ``done``: the run is complete; ``stopped``: it was asked to end for good; ``again``: it saved its state
    and is to be queued again (time limit, `distllm requeue`); ``hopeless``: it would fail again; ``failed``:
    a new start may help. ``host`` is the machine on which it hung, if it did and the machine is known.
    """

    kind: Kind
    why: str
    code: int
    host: str | None = None


class Watch:
    """Sees what a start adds to the ledger. Events of an earlier start that is still alive do not count.

    Args:
        run_dir: the run directory.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / LEDGER_FILE
        before = self._events()
        self._seen = len(before)
        self._attempt = max((event.attempt for event in before), default=0)

    def has_ended(self) -> bool:
        """Whether the ledger says how this start ended, or that it hangs and is about to be ended."""
        return any(event.kind in (*ENDS, "hang") for event in self._new())

    def outcome(self, code: int, exits: Path) -> Outcome:
        """Return how the start ended.

        Args:
            code: exit code of ``srun``, or of another launcher.
            exits: directory in which each rank has written its own exit code.
        """
        last = next((event for event in reversed(self._new()) if event.kind in ENDS), None)
        if last is not None and last.kind == "done":
            return Outcome("done", f"step {last.fields.get('step')}", 0)
        if last is not None and last.kind == "stopped":
            why = str(last.fields.get("why"))
            if any(reason in why for reason in AGAIN):
                return Outcome("again", why, 75)
            return Outcome("stopped", f"{why}, at step {last.fields.get('step')}", 75)
        codes = rank_codes(exits)
        if (same := failed_again(self._events(), self._seen)) is not None:
            return Outcome("hopeless", same, SAME_FAILURE)
        never = next(((rank, own) for rank, own in sorted(codes.items()) if own in NEVER_AGAIN), None)
        what = f": {last.fields.get('error')}: {last.fields.get('cause')}" if last is not None else ""
        if never is not None:
            return Outcome("hopeless", f"rank {never[0]} ended with {never[1]}{what}", never[1])
        hang = next((event for event in reversed(self._new()) if event.kind == "hang"), None)
        # A LaunchError of a rank that lost another one is a consequence of the hang.
        if hang is None or (last is not None and last.fields.get("error") != "LaunchError"):
            name = signal_of(code) if last is None else None
            ended = f" ({name}, often because memory ran out)" if name == "SIGKILL" else ""
            return Outcome("failed", f"the launcher ended with {code}{ended}{what}", 70)
        hosts = hang.fields.get("hosts")
        host = str(hosts[0]) if isinstance(hosts, list) and len(hosts) == 1 else None
        return Outcome("failed", f"the run hung: {hang.fields.get('cause')}", 70, host)

    def _new(self) -> list[Event]:
        return [event for event in self._events()[self._seen :] if event.attempt > self._attempt]

    def _events(self) -> list[Event]:
        try:
            return read_events(self._path)
        except DataError:
            return []


_TRANSIENT = ("LaunchError", "StorageError", "Interrupted")
"""Errors with causes outside the run, which may be gone at the next attempt even after two in a row."""


def failed_again(events: Sequence[Event], seen: int) -> str | None:
    """Return a sentence if the last two attempts failed with the same error at the same step, else None.

    Args:
        events: the ledger.
        seen: how many events there were when the last attempt was started. An attempt that has not
            recorded its own beginning is not judged.
    """
    begun = [place for place, event in enumerate(events) if event.kind == "attempt"]
    if len(begun) < 2 or begun[-1] < seen:
        return None
    ends = [
        next((event for event in reversed(of_one) if event.kind in (*ENDS, "killed", "hang")), None)
        for of_one in (events[begun[-2] : begun[-1]], events[begun[-1] :])
    ]
    before, last = (None if end is None or end.kind != "failed" else end.fields for end in ends)
    if last is None or before is None or last.get("error") in _TRANSIENT or "step" not in last:
        return None
    if any(before.get(name) != last[name] for name in ("error", "cause", "step")):
        return None
    return (
        f"the same failure at step {last['step']} as in the attempt before: {last['error']}: {last['cause']}"
    )


def write_exit_code(code: int) -> None:
    """Write this rank's exit code to the file that the job script reads, if a job script asked for it."""
    directory = os.environ.get(EXITS_VARIABLE)
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID"))
    if directory and rank:
        with contextlib.suppress(OSError):  # the job script falls back to the exit code of srun
            (Path(directory) / rank).write_text(f"{code}\n", encoding="ascii")


def rank_codes(exits: Path) -> dict[int, int]:
    """Return the exit codes that ranks have written, by rank."""
    found = {}
    for path in exits.glob("[0-9]*"):
        text = path.read_text(encoding="ascii", errors="replace").strip()
        if path.name.isdigit() and text.isdigit():
            found[int(path.name)] = int(text)
    return found


def is_done(run_dir: Path) -> bool:
    """Whether the run has taken all its steps."""
    last = last_event(run_dir / LEDGER_FILE, (*ENDS, "attempt"))
    return last is not None and last.kind == "done"
