"""Requests to stop or to save: noted when they arrive, and carried out by all ranks between two steps."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType

from distllm.cluster.control import Control

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_DEEPSPEED_LAUNCHER = "deepspeed.launcher.launch"
_LOOK_SECONDS = 1.0


class StopRequest:
    """Remembers that this rank was asked to stop. A second SIGINT stops it at once.

    Rank 0 also looks for files with requests (`distllm.cluster.control`), at most once a second: looking at a
    shared file system may take longer than a step of a small model.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._interrupted = False
        self._control: Control | None = None
        self._looked_at = float("-inf")
        self._file_why: str | None = None
        self._save = False
        self._runner = _runner_of_deepspeed()

    def install(self) -> None:
        """Handle the signals of schedulers and of Ctrl-C."""
        for number in STOPPING:
            signal.signal(number, self._note)

    def watch(self, run_dir: Path) -> None:
        """Also look for requests in the run directory."""
        self._control = Control(run_dir)

    @property
    def requested(self) -> bool:
        """Whether this rank was asked to stop, or the command that the user started has ended.

        A signal ends the ``deepspeed`` command but not the process that it has started, whose ranks would
        keep training.
        """
        self._look()
        if self._runner is not None and _parent_of(os.getppid()) != self._runner:
            self.signal = self.signal or signal.SIGTERM
        return self.signal is not None or self._file_why is not None

    @property
    def save_requested(self) -> bool:
        """Whether this rank was asked to save and continue."""
        self._look()
        return self._save

    @property
    def why(self) -> str:
        """The reason for stopping, for people."""
        return f"asked to stop: {self._file_why}" if self._file_why else "asked to stop"

    def clear_save(self) -> None:
        """Forget the request to save: it is done."""
        self._save = False
        if self._control is not None:
            self._control.forget("save")

    def clear_stop(self) -> None:
        """Forget the request to stop, so that the next start does not stop as well."""
        if self._control is not None:
            self._control.forget("stop")

    def _look(self) -> None:
        if self._control is None or time.monotonic() - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        stop = self._control.asked("stop")
        self._file_why = stop.why if stop is not None else None
        self._save = self._control.asked("save") is not None

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        self.signal = signal.Signals(number)


def _runner_of_deepspeed() -> int | None:
    """Return the process of the ``deepspeed`` command, if that is what started this rank."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return _parent_of(os.getppid()) if _DEEPSPEED_LAUNCHER in words else None


def _parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1])
    except OSError:
        return None
