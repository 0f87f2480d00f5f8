"""How the wall time of a run was spent, over all its attempts: a pure function of its ledger.

Every second between the first event and the last belongs to one category:

- ``productive``: forward, backward and update of steps that counted in the end;
- ``checkpoint``, ``eval``, ``data`` (waiting for a batch), ``overhead`` (the rest of a running attempt);
- ``rework``: forward, backward and update whose result was discarded: of steps that were taken again
  after a restart or a rewind, and of skipped steps;
- ``hang``: from the last progress of a run that hung to its detection;
- ``restart``: from the end of an attempt to the first step of the next, and going back to a checkpoint;
- ``idle``: between two attempts, for longer than a restart takes.

An attempt that was killed could not report its time since its last ``progress`` event. Its last step is known
from the metrics; the time of the steps in between is estimated by the mean of those before.

The clocks of two machines differ, and may be set back or forward. Times before the latest one that was read
add nothing, so that a clock that goes back an hour and returns adds no hour. What a rank measured itself,
with a monotonic clock, always counts exactly once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from distllm.observe.ledger import Event, number_in

Category = Literal[
    "productive", "checkpoint", "eval", "data", "overhead", "rework", "hang", "restart", "idle"
]
CATEGORIES: tuple[Category, ...] = get_args(Category)
RESTART_SECONDS = 600.0
"""A longer gap between attempts is a restart only if a supervisor restarted the run; otherwise it is idle."""

_IN_ORDER = ("completed", "stopped")  # ends of an attempt that are not failures


@dataclass(frozen=True, slots=True)
class Account:
    """How the time of a run was spent.

    Attributes:
        seconds: seconds of each category.
        attempts: number of attempts.
        step: the current step.
        lost_steps: steps that were taken and then undone by a restart or a rewind.
        restarts: number of attempts after the first, by what ended the one before.
        failures: attempts that neither completed nor stopped on request, including the last one.
    """

    seconds: Mapping[Category, float]
    attempts: int
    step: int
    lost_steps: int
    restarts: Mapping[str, int]
    failures: int

    @property
    def wall(self) -> float:
        """Seconds from the first event to the last."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """Share of the wall time that was productive; 0 if there is no time."""
        return self.seconds["productive"] / self.wall if self.wall else 0.0

    @property
    def ettr(self) -> float:
        """Effective training time ratio: the share of time not lost to faults or to checkpoints against them.

        The other costs of training (data, evaluation, the loop) are not a loss here. After Kokolis et al.,
        arXiv:2410.21680.
        """
        lost: tuple[Category, ...] = ("checkpoint", "rework", "hang", "restart", "idle")
        return 1 - sum(self.seconds[name] for name in lost) / self.wall if self.wall else 0.0

    @property
    def mttf_seconds(self) -> float | None:
        """Mean time to failure of the whole job, idle time not counted; None without a failure."""
        return (self.wall - self.seconds["idle"]) / self.failures if self.failures else None


@dataclass(frozen=True, slots=True)
class LastStep:
    """The last known step of an attempt, and when it was taken (unix seconds)."""

    step: int
    time: float


def account(events: Iterable[Event], last_steps: Mapping[int, LastStep] | None = None) -> Account:
    """Split the wall time of a run into categories.

    Args:
        events: its ledger, in file order.
        last_steps: the last step of each attempt in the metrics.
    """
    walk = _Walk(last_steps or {})
    for event in events:
        walk.take(event)
    return walk.end()


@dataclass(slots=True)
class _Stretch:
    """Steps ``first`` + 1 to ``last`` and the productive seconds they took."""

    first: int
    last: int
    seconds: float


@dataclass(slots=True)
class _Walk:
    """The state while reading a ledger.

    ``now`` is the latest time of any event so far, ``pending`` are the seconds up to it that no category has
    yet, ``reported`` is the time at which rank 0 last recorded its step; ``steps_here`` and
    ``seconds_here`` count in the current attempt.
    """

    last_steps: Mapping[int, LastStep]
    seconds: dict[Category, float] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0.0))
    stretches: list[_Stretch] = field(default_factory=list)
    restarts: Counter[str] = field(default_factory=Counter)
    now: float | None = None
    pending: float = 0.0
    reported: float = 0.0
    attempts: int = 0
    attempt: int = 0
    moving: bool = False
    steps_here: int = 0
    seconds_here: float = 0.0
    ending: str | None = None
    supervised: bool = False
    step: int = 0
    lost_steps: int = 0
    failures: int = 0

    def take(self, event: Event) -> None:
        """Account for the time up to ``event``."""
        before = event.time if self.now is None else self.now
        self.now = max(before, event.time)
        self.pending += self.now - before
        if event.kind in ("resumed", "progress", "rewind"):
            self.reported = event.time
        match event.kind:
            case "attempt":
                self._leave_attempt()
                self.attempts, self.attempt = self.attempts + 1, event.attempt
                self.moving, self.ending, self.supervised = False, None, False
                self.steps_here, self.seconds_here = 0, 0.0
            case "resumed":
                self._go_back(int(event.number("step")))
            case "progress":
                self._progress(event)
            case "rewind":
                self._go_back(int(event.number("to")))
            case "hang":
                self._book("hang", min(self.pending, max(0.0, event.number("seconds", self.pending))))
                self.ending, self.supervised = "hang", True
            case "killed":
                self.supervised = True
                # After a hang the supervisor kills the ranks, and ranks that lose another report errors.
                if self.ending not in ("hang", "out of memory"):
                    self.ending = f"killed by {event.fields.get('signal', 'a signal')}"
            case "oom":
                self.ending = "out of memory"
            case "restart":
                self.supervised = True
            case "failed":
                self.ending = self.ending or str(event.fields.get("error", "error"))
            case "stopped" | "done":
                self.ending = "stopped" if event.kind == "stopped" else "completed"

    def end(self) -> Account:
        """Account for the time up to the last event."""
        self._estimate_unreported()
        self._book(self._unmeasured(), self.pending)
        if self.ending is not None and self.ending not in _IN_ORDER:
            self.failures += 1
        return Account(
            self.seconds, self.attempts, self.step, self.lost_steps, dict(self.restarts), self.failures
        )

    def _book(self, category: Category, seconds: float) -> None:
        """Charge a part of the pending time to a category."""
        self.seconds[category] += seconds
        self.pending = max(0.0, self.pending - seconds)

    def _progress(self, event: Event) -> None:
        """Charge the time that the rank measured, and the rest."""
        measured = event.fields.get("seconds")
        named = measured if isinstance(measured, Mapping) else {}
        spent = {name: max(0.0, number_in(named, name)) for name in CATEGORIES}
        rest = self.pending - sum(spent.values())
        self._book(self._unmeasured(), max(0.0, rest))
        assert self.now is not None, "an event has been read"
        self.now += max(0.0, -rest)
        for name, seconds in spent.items():
            self._book(name, seconds)
        self._go_back(int(event.number("first")))
        before = self.step
        self._advance(int(event.number("step")), spent["productive"])
        self.steps_here += self.step - before
        self.seconds_here += spent["productive"]
        self.pending, self.moving = 0.0, True

    def _unmeasured(self) -> Category:
        """Return the category of unmeasured time of an attempt: until its first step it is starting."""
        return "overhead" if self.moving else "restart"

    def _advance(self, step: int, productive: float) -> None:
        if step > self.step:
            self.stretches.append(_Stretch(self.step, step, productive))
            self.step = step

    def _go_back(self, step: int) -> None:
        """Undo the steps after ``step``: their time becomes rework."""
        self.lost_steps += max(0, self.step - step)
        while self.stretches and self.stretches[-1].last > step:
            stretch = self.stretches.pop()
            kept = max(0, step - stretch.first) / (stretch.last - stretch.first) * stretch.seconds
            self.seconds["productive"] -= stretch.seconds - kept
            self.seconds["rework"] += stretch.seconds - kept
            if step > stretch.first:
                self.stretches.append(_Stretch(stretch.first, step, kept))
        self.step = step

    def _estimate_unreported(self) -> None:
        """Charge the steps after the last report of an attempt that ended."""
        last = self.last_steps.get(self.attempt)
        if last is None or last.step <= self.step or last.time <= self.reported:
            return
        mean = self.seconds_here / self.steps_here if self.steps_here else 0.0
        seconds = min(self.pending, (last.step - self.step) * mean)
        self._book("productive", seconds)
        self._advance(last.step, seconds)

    def _leave_attempt(self) -> None:
        """Charge the time from the last event of an attempt to the first of the next."""
        if self.attempts == 0:
            self._book("restart", self.pending)
            return
        self._estimate_unreported()
        explained = self.supervised or self.pending <= RESTART_SECONDS
        self._book("restart" if explained and self.ending != "completed" else "idle", self.pending)
        ending = self.ending or "unknown cause"
        self.restarts[ending] += 1
        self.failures += ending not in _IN_ORDER
