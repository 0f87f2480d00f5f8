"""Requests to a run, from a person or a job script: small files in its directory that rank 0 looks for.

Which processes a signal reaches depends on the launcher; a file reaches rank 0 wherever it runs, also in a
container. The ranks then agree on the step at which they act on it. Imports no torch.
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
RequestKind = Literal[
    "stop",  # save after the current step and end
    "save",  # save after the current step and continue
    "cancel",  # end now; the run must not be started again
]
TIME_LIMIT = "the time limit is near"
REQUEUE = "to queue again"
AGAIN = (TIME_LIMIT, REQUEUE)
"""Reasons to stop after which the job is queued again."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is requested, why, and whether the run is to be started again afterwards."""

    kind: RequestKind
    why: str
    again: bool


class Control:
    """The requests to one run.

    Args:
        run_dir: the run directory; it need not exist yet.
    """

    def __init__(self, run_dir: Path) -> None:
        self._directory = Path(run_dir) / DIRECTORY

    def ask(self, kind: RequestKind, why: str, *, again: bool = False) -> None:
        """Write a request; it replaces an earlier one of its kind.

        Raises:
            StorageError: the run directory cannot be written.
        """
        atomic_write_json(self._directory / kind, {"why": why, "again": again, "time": time.time()})

    def asked(self, kind: RequestKind) -> Request | None:
        """Return the request of this kind, if there is one."""
        try:
            text = (self._directory / kind).read_bytes()
        except OSError:
            return None
        with contextlib.suppress(ValueError):
            content = json.loads(text)
            if isinstance(content, dict):
                return Request(kind, str(content.get("why", "")), content.get("again") is True)
        # A file without this content, such as one made with touch, is a request too.
        return Request(kind, f"{self._directory / kind} exists", again=False)

    def forget(self, kind: RequestKind) -> None:
        """Remove the request: it was carried out, or was meant for an earlier start."""
        (self._directory / kind).unlink(missing_ok=True)

    def forget_all(self) -> None:
        """Remove every request."""
        for kind in get_args(RequestKind):
            self.forget(kind)
