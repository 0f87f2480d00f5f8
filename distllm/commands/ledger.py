"""`distllm ledger`: where a run's time went, and what happened to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distllm.commands.arguments import parse_options
from distllm.config.options import option
from distllm.errors import DataError

LOGBOOK_FILE = "logbook.md"


@dataclass(frozen=True)
class Options:
    """Options of `distllm ledger`."""

    run: str | None = option(None, "name or directory of the run")
    logbook: bool = option(False, "also write logbook.md into the run directory")
    runs_dir: str = option("runs", "directory that holds run directories")


def run(words: Sequence[str]) -> int:
    """Print the split of the wall time, goodput, faults and samples of a run, and its timeline."""
    options = parse_options("ledger", Options, words)
    from distllm.commands.runs import require
    from distllm.fsio import atomic_write_text
    from distllm.observe.ledger import LEDGER_FILE, read_events
    from distllm.observe.logbook import read_logbook
    from distllm.observe.sinks import last_steps
    from distllm.train.run_directory import locate_run

    directory = locate_run(require(options.run, "run", "ledger"), options.runs_dir)
    path = directory.path / LEDGER_FILE
    events = read_events(path)
    if not events:
        raise DataError(f"{path} holds no events", where=str(path), remedy="start the run: distllm train")
    logbook = read_logbook(directory.path.name, events, last_steps(directory.metrics))
    print(logbook.text())
    if options.logbook:
        atomic_write_text(directory.path / LOGBOOK_FILE, logbook.markdown())
        print(f"\nwritten: {directory.path / LOGBOOK_FILE}")
    return 0
