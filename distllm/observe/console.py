"""One fixed-width line per logged step, for people; coloured on a terminal, plain text elsewhere."""

from __future__ import annotations

import sys
import unicodedata
from typing import TextIO

from distllm.observe.ledger import Event
from distllm.observe.metrics import EvalRecord, StepRecord
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
    """Print records as they come.

    Args:
        total_steps: length of the run, shown beside each step.
        stream: where to print; standard output if ``None``.
        run: how commands name the run; with it, the end says what to do next.
    """

    def __init__(self, total_steps: int, stream: TextIO | None = None, run: str | None = None) -> None:
        self._run = run
        self._losses: list[float] = []
        self._total = total_steps
        self._printer = _printer(sys.stdout if stream is None else stream)
        self._until_header = 0

    def log_step(self, record: StepRecord) -> None:
        """Print one line, and the header above it every `HEADER_EVERY` lines."""
        if self._until_header == 0:
            self._printer.line(self._row("step", [name for name, _ in _COLUMNS]), "bold")
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
        self._printer.line(self._row(f"{record.step}/{self._total}", cells), "")

    def log_eval(self, record: EvalRecord) -> None:
        """Print one line that stands out between steps."""
        self._losses = [*self._losses[:1], record.loss]
        figures = [f"loss {_number(record.loss)}"]
        if record.perplexity is not None:
            figures.append(f"perplexity {record.perplexity:.4g}")
        if record.bits_per_byte is not None:
            figures.append(f"{record.bits_per_byte:.4f} bits per byte")
        figures += [f"{name} {_number(loss)}" for name, loss in record.sources.items()]
        self._printer.line(
            f"== evaluation at step {record.step}: {', '.join(figures)} ({format_duration(record.seconds)})",
            "bold green",
        )

    def log_sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        """Print the prompt and what the model wrote after it, behind a bar in the margin."""
        self._printer.line(f"== sample at step {step}", "bold cyan")
        for line in _printable(redact_text(prompt + text)).splitlines() or [""]:
            self._printer.line(f" | {line}", "cyan")

    def log_note(self, step: int, text: str) -> None:
        """Print the note; one that belongs to a step says so itself."""
        self._printer.line(f"== {redact_text(text)}", "yellow")

    def log_event(self, event: Event) -> None:
        """At the end of an attempt say what became of the run and what to do next."""
        if self._run is None or event.kind not in ("done", "stopped"):
            return
        ending = "done" if event.kind == "done" else "stopped, and saved,"
        losses = " -> ".join(map(_number, self._losses))
        figures = f", validation loss {losses}" if losses else ""
        self._printer.line(f"== {ending} at step {int(event.number('step'))}{figures}", "bold green")
        steps = [f"distllm report run={self._run}", f"distllm ledger run={self._run}"]
        if event.kind == "stopped":
            steps.insert(0, "run the same command again: it goes on from here")
        for step in steps:
            self._printer.line(f"   next: {step}", "")

    def close(self) -> None:
        """Do nothing: every line has been flushed."""

    def _row(self, step: str, cells: list[str]) -> str:
        """Align ``cells`` to the right; the step column is as wide as the last step needs."""
        width = max(len("step"), 2 * len(str(self._total)) + 1)
        aligned = (cell.rjust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True))
        return " ".join([step.rjust(width), *aligned])


class _PlainPrinter:
    """Lines without escape codes, for files, pipes and logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def line(self, text: str, style: str) -> None:
        """Print ``text``; ``style`` is for terminals only."""
        print(text, file=self._stream, flush=True)


class _TerminalPrinter:
    """Coloured lines for a terminal."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.text import Text

        self._text = Text
        self._console = Console(file=stream, highlight=False)

    def line(self, text: str, style: str) -> None:
        """Print ``text`` in ``style``, unwrapped; rich's markup in it means nothing."""
        self._console.print(self._text(text, style=style), soft_wrap=True)


def _printer(stream: TextIO) -> _PlainPrinter | _TerminalPrinter:
    return _TerminalPrinter(stream) if stream.isatty() else _PlainPrinter(stream)


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10_000 else f"{value:.2e}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"


def _printable(text: str) -> str:
    """Replace control characters: a model may write escape codes that would drive the terminal."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c
        for c in text
    )
