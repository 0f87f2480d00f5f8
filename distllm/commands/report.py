"""`distllm report`: write one HTML file about a run, or about several side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distllm.commands.arguments import parse_options
from distllm.config.options import option
from distllm.errors import ConfigError, DistllmError

REPORT_FILE = "report.html"


@dataclass(frozen=True)
class Options:
    """Options of `distllm report`."""

    run: str | None = option(None, "name or directory of the run, or several: run=a,b")
    out: str | None = option(None, "the file to write; null: report.html in the (first) run directory")
    png: bool = option(False, "also write each curve as PNG, into a directory next to the file")
    runs_dir: str = option("runs", "directory that holds run directories")


def run(words: Sequence[str]) -> int:
    """Write the report and print its path."""
    options = parse_options("report", Options, words)
    from distllm.commands.runs import require
    from distllm.fsio import atomic_write_text
    from distllm.report.facts import gather
    from distllm.report.figures import write_figures
    from distllm.report.page import page_data, render

    directories = _directories(require(options.run, "run", "report"), options.runs_dir)
    facts = [gather(path, _batch_text(path)) for path in directories]
    out = Path(options.out) if options.out else directories[0] / REPORT_FILE
    atomic_write_text(out, render(facts))
    print(f"written: {out}  (open it in a browser; it needs no network)")
    if options.png:
        for path in write_figures(page_data(facts), out.with_suffix("")):
            print(f"written: {path}")
    return 0


def _directories(names: str, runs_dir: str) -> list[Path]:
    """Return the directories of a comma-separated list of runs.

    Names of runs of a sweep contain commas themselves, so the longest name that exists is taken.

    Raises:
        ConfigError: there is no such run.
    """
    from distllm.train.run_directory import locate_run

    words = [word.strip() for word in names.split(",") if word.strip()]
    found = list[Path]()
    while words:
        count = len(words)
        while True:
            try:
                found.append(locate_run(",".join(words[:count]), runs_dir).path)
                break
            except ConfigError:
                count -= 1
                if count == 0:
                    raise
        words = words[count:]
    return found


def _batch_text(path: Path) -> Callable[[int, int], str]:
    """Return a function from a step and its first sample to the text of the step's batch."""

    def text(step: int, first_sample: int) -> str:
        from distllm.commands.batches import batch_texts
        from distllm.commands.runs import run_of

        stored = run_of(str(path), ".")
        try:
            resolved = stored.resolved()
        except OSError as error:
            raise DistllmError(
                f"the dataset of step {step} cannot be read: {error}",
                where=f"step {step}",
                remedy="restore the dataset at data.out, and write the report again",
            ) from error
        shown = batch_texts(resolved, step, first_sample, range(resolved.world.size))
        return "\n".join(
            f"##### rank {rank}, micro-batch {number} of {of}\n{text}" for rank, number, of, text in shown
        )

    return text
