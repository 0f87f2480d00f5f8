"""Ranks that a launcher started on other machines must not outlive it.

When a remote shell is lost, its ranks keep training unnoticed next to those of the next start. So the
launcher writes a heartbeat to a file of the run directory, and every rank reads it: when it stops, the rank
asks itself to save and stop, and ends a little later; when it belongs to a later start, the rank ends at
once. Clocks of different machines are not compared: each rank measures how long the file has not changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

from distllm.cluster.fence import Fence
from distllm.fsio import atomic_write_json

BEAT_SECONDS = 2.0
LOST_SECONDS = 30.0
GRACE_SECONDS = 30.0
LOST_EXIT = 70
_FILE = Path("control") / "launcher.json"


class Leash:
    """The launcher's side.

    Args:
        run_dir: the run directory, on a file system that all machines share.
        fence: the start of the run that the launcher serves.
    """

    def __init__(self, run_dir: Path, fence: Fence) -> None:
        self._path, self._fence = run_dir / _FILE, fence
        self._beat = 0
        self._last = float("-inf")

    def beat(self) -> None:
        """Show that the launcher is alive, at most every `BEAT_SECONDS`."""
        if time.monotonic() - self._last >= BEAT_SECONDS:
            self._last = time.monotonic()
            self._beat += 1
            atomic_write_json(self._path, {"fence": str(self._fence), "beat": self._beat})

    def end_ranks(self) -> None:
        """Tell the ranks of this start to end."""
        atomic_write_json(self._path, {"fence": str(self._fence), "beat": -1})


def follow_launcher(run_dir: Path, fence: Fence, lost_seconds: float = LOST_SECONDS) -> threading.Thread:
    """Watch the launcher's heartbeat from a rank, in a thread that ends the process when it stops."""
    thread = threading.Thread(target=_watch, args=(run_dir / _FILE, str(fence), lost_seconds), daemon=True)
    thread.start()
    return thread


def _watch(path: Path, fence: str, lost_seconds: float) -> None:
    last, changed_at = "", time.monotonic()
    while True:
        time.sleep(BEAT_SECONDS / 2)
        with contextlib.suppress(OSError):
            text = path.read_text(encoding="utf-8")
            if text != last:
                last, changed_at = text, time.monotonic()
        if _is_superseded(last, fence):
            os._exit(LOST_EXIT)
        if time.monotonic() - changed_at > lost_seconds:
            os.kill(os.getpid(), signal.SIGTERM)  # save, if all ranks can still meet
            time.sleep(GRACE_SECONDS)
            os._exit(LOST_EXIT)


def _is_superseded(text: str, fence: str) -> bool:
    """Whether the launcher has told the ranks of this start to end, or has begun another start."""
    with contextlib.suppress(ValueError):
        content = json.loads(text)
        return isinstance(content, dict) and (content.get("fence") != fence or content.get("beat") == -1)
    return False
