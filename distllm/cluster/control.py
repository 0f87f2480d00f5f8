"""What a person or a job script asks of a run: small files in its directory, which rank 0 looks at.

Signals reach whichever processes a launcher lets them reach; a file reaches rank 0 wherever it runs,
also inside a container. The ranks then agree on the step at which they obey. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from distllm.fsio import atomic_write_json

DIRECTORY = "control"
Wish = Literal[
    "stop",  # save at the next border of a step and end
    "save",  # save there and go on
    "cancel",  # end now; nothing is to start this run again
]
TIME_LIMIT = "the time limit is near"
REQUEUE = "to queue again"
AGAIN = (TIME_LIMIT, REQUEUE)
"""Reasons to stop after which the job is to come back."""


@dataclass(frozen=True, slots=True)
class Request:
    """A wish, why it was made, and whether the run is to be started again after it."""

    wish: Wish
    why: str
    again: bool


class Control:
    """The requests to one run.

    Args:
        run_dir: the run directory; it need not exist to be asked.
    """

    def __init__(self, run_dir: Path) -> None:
        self._directory = Path(run_dir) / DIRECTORY

    def ask(self, wish: Wish, why: str, *, again: bool = False) -> None:
        """Leave a request; the newest of a kind counts.

        Raises:
            StorageError: the run directory cannot be written.
        """
        atomic_write_json(self._directory / wish, {"why": why, "again": again, "time": time.time()})

    def asked(self, wish: Wish) -> Request | None:
        """Return the request of this kind, if there is one."""
        try:
            text = (self._directory / wish).read_text(encoding="utf-8")
        except OSError:
            return None
        with contextlib.suppress(ValueError):
            content = json.loads(text)
            if isinstance(content, dict):
                return Request(wish, str(content.get("why", "")), content.get("again") is True)
        # Also a file that somebody has merely touched is a request.
        return Request(wish, f"{self._directory / wish} exists", again=False)

    def forget(self, wish: Wish) -> None:
        """Remove the request: it was obeyed, or was meant for an earlier start."""
        (self._directory / wish).unlink(missing_ok=True)

    def forget_all(self) -> None:
        """Remove every request."""
        for wish in get_args(Wish):
            self.forget(wish)
