"""Headings and progress, on a terminal and in logs."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from distllm.units import format_bytes, format_count, format_duration

SECONDS_BETWEEN_LINES = 5.0
_RULE = "=" * 72
_ETA_FROM = 1000
"""A stage shows an ETA once more than one part in this many is done."""


class Progress(Protocol):
    """The progress of a stage: ``done`` of ``total`` (``None``: unknown), counted in ``unit``."""

    @property
    def stage(self) -> str:
        """Name of the stage."""

    @property
    def done(self) -> int:
        """How much is done."""

    @property
    def total(self) -> int | None:
        """How much there is in total; None if that is unknown."""

    @property
    def unit(self) -> str:
        """What is counted."""

    @property
    def note(self) -> str:
        """A remark, such as what was found so far."""


Report = Callable[[Progress], None]


def stage(title: str, stream: TextIO | None = None) -> None:
    """Print a heading that is easy to find in a terminal or a log."""
    print(f"\n{_RULE}\n{title}\n{_RULE}", file=stream or sys.stdout, flush=True)


@contextmanager
def stage_reporter(stream: TextIO | None = None) -> Iterator[Report]:
    """Yield a function that shows progress.

    On a terminal it draws a bar for each stage. Elsewhere it prints a line when a stage begins, every few
    seconds, and for the last report of a stage; no line is printed twice.
    """
    output = stream or sys.stdout
    with _bars(output) if output.isatty() else _lines(output) as report:
        yield report


@contextmanager
def _lines(stream: TextIO) -> Iterator[Report]:
    unprinted: tuple[Progress, str] | None = None
    printed: Progress | None = None
    current, printed_at = "", 0.0
    pace = _Pace()

    def show(progress: Progress, rate: str) -> None:
        remarks = "".join(f"  {remark}" for remark in (rate, progress.note) if remark)
        print(f"  {progress.stage:<12}{amount(progress)}{remarks}", file=stream, flush=True)

    def report(progress: Progress) -> None:
        nonlocal unprinted, printed, current, printed_at
        if progress == printed:
            return  # the first report of a stage without work is also its last
        if unprinted is not None and progress.stage != current:
            show(*unprinted)
        now = time.monotonic()
        rate = pace.of(progress, now)
        if progress.stage != current or now - printed_at >= SECONDS_BETWEEN_LINES:
            show(progress, rate)
            unprinted, printed, current, printed_at = None, progress, progress.stage, now
        else:
            unprinted = progress, rate

    yield report
    if unprinted is not None:
        show(*unprinted)


@contextmanager
def _bars(stream: TextIO) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars
    from rich.progress import TaskID as BarId

    # The columns fit 80 characters; the bar replaces the percentage.
    columns = (
        TextColumn("  {task.description:<10}", markup=False),
        BarColumn(bar_width=10),
        TextColumn("{task.fields[amount]}", markup=False),
        TextColumn("{task.fields[rate]}", markup=False),
        TextColumn("{task.fields[note]}", markup=False),
    )
    bars: dict[str, BarId] = {}
    pace = _Pace()
    with Bars(*columns, console=Console(file=stream)) as screen:

        def report(progress: Progress) -> None:
            if progress.stage not in bars:
                bars[progress.stage] = screen.add_task(progress.stage, amount="", rate="", note="")
            screen.update(
                bars[progress.stage],
                completed=progress.done,
                total=progress.total,
                amount=amount(progress, percent=False),
                rate=pace.of(progress, time.monotonic()),
                note=progress.note,
            )

        yield report


class _Pace:
    """The speed of the current stage, and the time it still needs."""

    def __init__(self) -> None:
        self._stage, self._begun_at, self._begun_with = "", 0.0, 0

    def of(self, progress: Progress, now: float) -> str:
        """Return a text such as ``3.2 MiB/s, ETA 12s``; empty while nothing is known yet."""
        if progress.stage != self._stage:
            self._stage, self._begun_at, self._begun_with = progress.stage, now, progress.done
        done, seconds = progress.done - self._begun_with, now - self._begun_at
        if done <= 0 or seconds <= 0:
            return ""
        shown = format_bytes if progress.unit == "bytes" else format_count
        rate = f"{shown(done / seconds)}/s"
        left = (progress.total or 0) - progress.done
        if not 0 < left < _ETA_FROM * done:
            return rate
        return f"{rate}, ETA {format_duration(left * seconds / done)}"


def amount(progress: Progress, *, percent: bool = True) -> str:
    """Return ``1.5 MiB of 10.0 MiB (15%)``, or ``12.3k documents`` if the total is unknown."""
    if progress.unit == "bytes":
        done, unit = format_bytes(progress.done), ""
        total = format_bytes(progress.total or 0)
    else:
        done, unit = format_count(progress.done), f" {progress.unit}"
        total = format_count(progress.total or 0)
    if not progress.total:
        return done + unit
    share = f" ({100 * progress.done / progress.total:.0f}%)" if percent else ""
    return f"{done} of {total}{unit}{share}"


def printable(text: str) -> str:
    """Replace control characters: escape codes in generated text or data could change the terminal."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c
        for c in text
    )
