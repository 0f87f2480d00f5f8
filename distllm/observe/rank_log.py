"""The output of a rank, copied to its own file in the run directory: ``logs/rank-00000.log``."""

from __future__ import annotations

import io
import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import TextIO

from distllm.errors import DistllmError
from distllm.redact import redact_text

LOGS_DIRECTORY = "logs"


def log_path(run_dir: Path, rank: int) -> Path:
    """Return the file of a rank."""
    return run_dir / LOGS_DIRECTORY / f"rank-{rank:05d}.log"


class Tee(io.TextIOBase):
    """A stream whose text is also written to a log.

    Attributes:
        terminal: the stream.
        log: the rank's file.
    """

    def __init__(self, terminal: TextIO, log: LogFile) -> None:
        self.terminal, self.log = terminal, log

    def write(self, text: str) -> int:
        """Write to both."""
        self.log.write(text)
        return self.terminal.write(text)

    def flush(self) -> None:
        """Flush both."""
        self.terminal.flush()
        self.log.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self.terminal.isatty()

    def fileno(self) -> int:
        """The descriptor of the stream."""
        return self.terminal.fileno()


class LogFile(io.TextIOBase):
    """A log file that is abandoned when it cannot be written: a log must not end a run.

    Args:
        path: lines are appended to it; its directory is created.
        complain: gets one line when the file is abandoned.
    """

    def __init__(self, path: Path, complain: TextIO) -> None:
        self._path, self._complain = path, complain
        self._file: TextIO | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
        except OSError as error:
            self._give_up(error)

    def write(self, text: str) -> int:
        """Append."""
        if self._file is not None:
            try:
                self._file.write(text)
            except OSError as error:
                self._give_up(error)
        return len(text)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self._give_up(error)
            self._file = None

    def _give_up(self, error: OSError) -> None:
        self._file = None
        print(f"distllm: {self._path} is no longer written: {error}", file=self._complain, flush=True)


class RankLog:
    """Copies the output of this process to its log, until it is closed.

    Args:
        run_dir: the run directory.
        rank: the rank of this process.
        world_size: number of ranks.
        attempt: number of the attempt.
    """

    def __init__(self, run_dir: Path, rank: int, world_size: int, attempt: int) -> None:
        self._log = LogFile(log_path(run_dir, rank), sys.stderr)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        place = f"rank {rank} of {world_size}, pid {os.getpid()} on {socket.gethostname()}"
        self._log.write(f"== {now} attempt {attempt}, {place}\n")
        self._before = sys.stdout, sys.stderr
        self._tees = Tee(sys.stdout, self._log), Tee(sys.stderr, self._log)
        sys.stdout, sys.stderr = self._tees

    def log_error(self, error: BaseException) -> None:
        """Write to the file only why the attempt ends: whoever catches the error prints it."""
        if isinstance(error, DistllmError):
            told = f"{type(error).__name__}: {error}"
        else:
            told = "".join(traceback.format_exception(error)).rstrip()
        self._log.write(f"== the attempt ends with {redact_text(told)}\n")

    def close(self) -> None:
        """Restore the standard streams."""
        if (sys.stdout, sys.stderr) == self._tees:
            sys.stdout, sys.stderr = self._before
        self._log.close()
