"""The console output of a run: a progress bar on a terminal, a fixed-width line per logged step elsewhere.

Evaluations, samples, notes and the end are lines in both cases. With a terminal, the plain lines also go to
the rank's log (see `distllm.observe.rank_log`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol, TextIO

from distllm.display import printable
from distllm.observe.ledger import Event
from distllm.observe.metrics import EvalRecord, StepRecord
from distllm.observe.rank_log import LogFile, Tee
from distllm.redact import redact_text
from distllm.units import format_bytes, format_count, format_duration

HEADER_EVERY = 30
_COLUMNS = (
    ("tokens", 8),
    ("loss", 9),
    ("lr", 9),
    ("grad norm", 10),
    ("tok/s", 8),
    ("MFU", 7),
    ("wait", 7),
    ("memory", 10),
    ("ETA", 10),
)


class ConsoleSink:
    """Prints records as they come.

    Args:
        total_steps: length of the run, shown next to each step.
        stream: where to print; standard output if ``None``.
        run: name of the run for commands; if given, the end lists commands to run next.
        when_done: commands to list when the run is done.
    """

    def __init__(
        self,
        total_steps: int,
        stream: TextIO | None = None,
        run: str | None = None,
        when_done: Sequence[str] = ("evaluate", "report", "export"),
    ) -> None:
        self._run = run
        self._when_done = when_done
        self._losses: list[float] = []
        self._total = total_steps
        self._printers = _printers(sys.stdout if stream is None else stream, total_steps)
        self._until_header = 0

    def log_step(self, record: StepRecord) -> None:
        """Move the bar, or print one line, and the header above it every `HEADER_EVERY` lines."""
        rows = []
        if self._until_header == 0:
            rows.append(self._row("step", [name for name, _ in _COLUMNS]))
            self._until_header = HEADER_EVERY
        self._until_header -= 1
        cells = [
            format_count(record.tokens),
            _number(record.loss),
            f"{record.lr:.2e}",
            _number(record.grad_norm),
            format_count(record.tokens_per_second),
            "-" if record.mfu is None else _percent(record.mfu),
            _percent(record.data_wait_fraction),
            format_bytes(record.memory_bytes),
            format_duration(record.eta_seconds),
        ]
        rows.append(self._row(f"{record.step}/{self._total}", cells))
        for printer in self._printers:
            printer.step(record, rows)

    def log_eval(self, record: EvalRecord) -> None:
        """Print the measures as one line."""
        self._losses = [*self._losses[:1], record.loss]
        figures = [f"loss {_number(record.loss)}"]
        if record.perplexity is not None:
            figures.append(f"perplexity {record.perplexity:.4g}")
        if record.bits_per_byte is not None:
            figures.append(f"{record.bits_per_byte:.4f} bits per byte")
        figures += [f"{name} {_number(loss)}" for name, loss in record.sources.items()]
        figures += [f"exposure {times} {bits:.2f} bits" for times, bits in record.exposure.items()]
        self._line(
            f"== evaluation at step {record.step}: {', '.join(figures)} ({format_duration(record.seconds)})",
            "bold green",
        )

    def log_sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        """Print the prompt and its continuation, with a bar in the margin."""
        self._line(f"== sample at step {step}", "bold cyan")
        for line in printable(redact_text(prompt + text)).splitlines() or [""]:
            self._line(f" | {line}", "cyan")

    def log_note(self, step: int, text: str) -> None:
        """Print the note."""
        self._line(f"== {redact_text(text)}", "yellow")

    def log_event(self, event: Event) -> None:
        """At the end of an attempt, print how it ended and which commands to run next."""
        if self._run is None or event.kind not in ("done", "stopped"):
            return
        ending = "done" if event.kind == "done" else "stopped, and saved,"
        losses = " -> ".join(map(_number, self._losses))
        figures = f", validation loss {losses}" if losses else ""
        self._line(f"== {ending} at step {int(event.number('step'))}{figures}", "bold green")
        commands = ("report", "ledger") if event.kind == "stopped" else self._when_done
        steps = [f"distllm {command} run={self._run}" for command in commands]
        if event.kind == "stopped":
            steps.insert(0, "run the same command again: it continues from here")
        for step in steps:
            self._line(f"   next: {step}", "")

    def close(self) -> None:
        """Remove the progress bar."""
        for printer in self._printers:
            printer.close()

    def _line(self, text: str, style: str) -> None:
        for printer in self._printers:
            printer.line(text, style)

    def _row(self, step: str, cells: list[str]) -> str:
        """Align ``cells`` to the right; the step column is as wide as the last step needs."""
        width = max(len("step"), 2 * len(str(self._total)) + 1)
        aligned = (cell.rjust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True))
        return " ".join([step.rjust(width), *aligned])


class _Printer(Protocol):
    """Where records are shown."""

    def line(self, text: str, style: str) -> None:
        """Print ``text``; ``style`` is for terminals only."""

    def step(self, record: StepRecord, rows: Sequence[str]) -> None:
        """Show a step; ``rows`` are its lines of text."""

    def close(self) -> None:
        """Stop showing progress."""


class _PlainPrinter:
    """Lines without escape codes, for files, pipes and logs."""

    def __init__(self, stream: TextIO | LogFile) -> None:
        self._stream = stream

    def line(self, text: str, style: str) -> None:
        """Print ``text``."""
        print(text, file=self._stream, flush=True)

    def step(self, record: StepRecord, rows: Sequence[str]) -> None:
        """Print the lines of a step."""
        for row in rows:
            self.line(row, "")

    def close(self) -> None:
        """Do nothing."""


class _TerminalPrinter:
    """A bar at the bottom of a terminal, and coloured lines above it."""

    def __init__(self, stream: TextIO, total_steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.text import Text

        self._text = Text
        self._console = Console(file=stream, highlight=False)
        self._bar = Progress(
            TextColumn("step {task.completed}/{task.total}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self._console,
            expand=True,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("train", total=total_steps, figures="")
        self._started = False

    def line(self, text: str, style: str) -> None:
        """Print ``text`` in ``style``, unwrapped; rich's markup in it means nothing."""
        self._console.print(self._text(text, style=style), soft_wrap=True)

    def step(self, record: StepRecord, rows: Sequence[str]) -> None:
        """Move the bar; it appears with the first step."""
        if not self._started:
            self._bar.start()
            self._started = True
        speed = f"{format_count(record.tokens_per_second)} tok/s"
        if record.mfu is not None:
            speed += f"  MFU {_percent(record.mfu)}"
        figures = f"loss {_number(record.loss)}  {speed}  ETA {format_duration(record.eta_seconds)}"
        self._bar.update(self._task, completed=record.step, figures=figures)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()


def _printers(stream: TextIO, total_steps: int) -> list[_Printer]:
    if not stream.isatty():
        return [_PlainPrinter(stream)]
    if isinstance(stream, Tee):
        return [_TerminalPrinter(stream.terminal, total_steps), _PlainPrinter(stream.log)]
    return [_TerminalPrinter(stream, total_steps)]


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10_000 else f"{value:.2e}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"
