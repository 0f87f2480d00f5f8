"""`distllm logs`: the output of a run's ranks, of the latest start or another one, once or continuously."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distllm.commands.arguments import parse_options
from distllm.commands.verbs import directory_of
from distllm.config.options import option
from distllm.errors import ConfigError

_POLL_SECONDS = 0.5
_LINE_BYTES = 4096
"""More than lines have on average: the last lines are looked for in so many bytes for each."""
_ASK_SECONDS = 10.0
"""How often SLURM is asked whether the run continues: `squeue` loads the controller."""
_ENDED = ("done", "stopped", "failed", "oom", "lost", "cancelled", "given up")


@dataclass(frozen=True)
class Options:
    """Options of `distllm logs`."""

    run: str | None = option(None, "name or directory of the run")
    runs_dir: str = option("runs", "directory that holds run directories")
    rank: str = option("0", "rank, or task of a preparation, or all")
    start: int | None = option(
        None, "number of the start under SLURM or on a hostfile; null: the latest", minimum=1
    )
    lines: int = option(20, "last lines of each log that are shown first", minimum=0)
    follow: bool = option(False, "show what is added until the run has ended; -f is the same")


def run(words: Sequence[str]) -> int:
    """Print the end of the logs and, with -f, everything that comes."""
    spelled = ["follow=true" if word in ("-f", "--follow") else word for word in words]
    options = parse_options("logs", Options, spelled)
    path = directory_of(options.run, options.runs_dir, "logs")
    if options.rank != "all" and not options.rank.isdigit():
        raise ConfigError(f"rank={options.rank} is not a rank", where="rank", remedy="rank=3, or rank=all")
    directory = logs_of(path, options.start)
    reader = Reader(directory, options.rank, options.lines)
    if not options.follow:
        if not reader.print_new():
            raise ConfigError(
                f"rank {options.rank} has no log in {directory}" if directory else "no rank has started",
                where=str(path),
                remedy="distllm status shows the state of the run",
            )
        return 0
    asked, ends = float("-inf"), 0
    while True:
        reader.print_new()
        if (latest := logs_of(path, options.start)) != reader.directory:
            print(f"== {latest}")
            reader = Reader(latest, options.rank, None)
            continue
        if time.monotonic() - asked > _ASK_SECONDS:
            asked = time.monotonic()
            end = _end_of(path)
            ends = 0 if end is None else ends + 1
            if ends > 1:  # once may be the moment between two starts
                reader.print_new()
                print(f"== the run has ended: {end}")
                return 0
        time.sleep(_POLL_SECONDS)


def logs_of(path: Path, start: int | None) -> Path | None:
    """Return the directory with a log per rank: of one start, of the latest, or of a run without starts.

    Raises:
        ConfigError: there is no such start.
    """
    from distllm.cluster.batch import start_directory
    from distllm.cluster.history import History
    from distllm.cluster.preparations import is_preparation
    from distllm.cluster.snapshot import submissions_of
    from distllm.observe.rank_log import LOGS_DIRECTORY

    if is_preparation(path):
        return submissions_of(path.absolute())[-1]
    starts = History(path).starts()
    if start is not None and start > len(starts):
        raise ConfigError(
            f"start={start}: the run was started {len(starts)} times by SLURM or on a hostfile",
            where=str(path),
            remedy="distllm status lists its starts",
        )
    if starts:
        own = start_directory(path, start or starts[-1].number)
        return own if any(own.glob("rank-*.log")) else path / LOGS_DIRECTORY
    return path / LOGS_DIRECTORY if (path / LOGS_DIRECTORY).is_dir() else None


class Reader:
    """Prints what was added to the logs of one directory since the last call.

    Args:
        directory: holds ``rank-N.log`` of each rank, or ``job-JOB-N.log`` of each task of a preparation;
            None while there is none.
        rank: a rank, or ``all``.
        lines: how many of the last lines are shown first; None: all.
    """

    def __init__(self, directory: Path | None, rank: str, lines: int | None) -> None:
        self.directory = directory
        self._rank, self._lines = rank, lines
        self._read: dict[Path, int] = {}

    def print_new(self) -> bool:
        """Print the new whole lines; return whether there is any log."""
        found = list(self._files())
        for rank, path in found:
            for line in self._new_lines(path):
                print(f"rank {rank} | {line}" if self._rank == "all" else line)
        return bool(found)

    def _files(self) -> Iterator[tuple[int, Path]]:
        home = self.directory
        paths = [*home.glob("rank-*.log"), *home.glob("job-*-*.log")] if home is not None else []
        of_rank = {int(path.stem.rpartition("-")[2]): path for path in sorted(paths)}
        for rank in sorted(of_rank):
            if self._rank == "all" or rank == int(self._rank):
                yield rank, of_rank[rank]

    def _new_lines(self, path: Path) -> list[str]:
        limit = None if path in self._read else self._lines
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            start = self._read.get(path, 0) if limit is None else max(0, size - limit * _LINE_BYTES - 1)
            stream.seek(min(start, size))
            added = stream.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._read[path] = min(start, size) + len(whole)
        lines = whole.decode(errors="replace").splitlines()
        return lines if limit is None else lines[max(0, len(lines) - limit) :]


def _end_of(path: Path) -> str | None:
    """Return how the run has ended; None while it runs or waits, or is about to be started again."""
    from distllm.cluster.preparations import is_preparation, preparation_of
    from distllm.cluster.state import state_of
    from distllm.commands.jobs import queue_if_any

    queue = queue_if_any([path])
    state = (preparation_of if is_preparation(path) else state_of)(path, queue).state
    return state if state in _ENDED else None
