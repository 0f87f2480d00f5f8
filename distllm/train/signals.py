"""Requests to stop: noted when they arrive, obeyed at the border of a step by all ranks alike."""

from __future__ import annotations

import signal
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Remembers that this rank was asked to stop. A second SIGINT stops it at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._interrupted = False

    def install(self) -> None:
        """Handle the signals of schedulers and of Ctrl-C."""
        for number in STOPPING:
            signal.signal(number, self._note)

    @property
    def requested(self) -> bool:
        """Whether this rank was asked to stop."""
        return self.signal is not None

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        self.signal = signal.Signals(number)
