"""A sink on its own thread: no step waits for it, and none of its failures ends a run."""

from __future__ import annotations

import errno
import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distllm.observe.ledger import Event
from distllm.observe.metrics import EvalRecord, StepRecord
from distllm.observe.sinks import Sink
from distllm.redact import redact_text

CAPACITY = 10_000
CLOSE_SECONDS = 120.0
_PROBE_SECONDS = 5.0
_PROBE_BYTES, _BACK_BYTES = 1 << 16, 1 << 20

_log = logging.getLogger(__name__)


class BackgroundSink:
    """Passes records on to another sink through a queue, which takes microseconds for the caller.

    The sink is also built on the thread: importing its library and connecting to its server may take minutes.
    Its first failure is logged as a warning, and from then on records are dropped. Records are also
    dropped while the queue is full because a server is slower than the run. ``metrics.jsonl`` has everything
    in any case.

    wandb, trackio and TensorBoard write on their own threads or processes, and none of them reports a full
    disk to its caller. So this class checks every few seconds whether their directory has space. When there
    is space again, the sink is built anew, as in a resumed attempt.

    Args:
        name: name for messages.
        build: builds the sink.
        directory: where its library writes; None if it writes to a server, or reports a full disk itself.
        capacity: number of records that may wait.
        close_seconds: how long `close` waits for records that are still in the queue.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[], Sink],
        *,
        directory: Path | None = None,
        capacity: int = CAPACITY,
        close_seconds: float = CLOSE_SECONDS,
    ) -> None:
        self._name = name
        self._close_seconds = close_seconds
        self._waiting: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue(capacity)
        self._directory = directory
        self._next_probe = 0.0
        self._dropped = 0
        self._closed = False
        self._thread = threading.Thread(target=self._work, args=(build,), name=f"sink {name}", daemon=True)
        self._thread.start()

    def log_step(self, record: StepRecord) -> None:
        """Pass on the record of a step."""
        self._put("log_step", record)

    def log_eval(self, record: EvalRecord) -> None:
        """Pass on the record of an evaluation."""
        self._put("log_eval", record)

    def log_sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        """Pass on a sample, without secrets."""
        self._put("log_sample", step, tokens, redact_text(prompt), redact_text(text))

    def log_note(self, step: int, text: str) -> None:
        """Pass on a note, without secrets."""
        self._put("log_note", step, redact_text(text))

    def log_event(self, event: Event) -> None:
        """Pass on an event of the ledger."""
        self._put("log_event", event)

    def close(self) -> None:
        """Wait for the sink to finish, at most ``close_seconds``; after that it is left alone."""
        if self._closed:
            return
        self._closed = True
        try:
            self._waiting.put(None, timeout=self._close_seconds)
            self._thread.join(self._close_seconds)
        except queue.Full:
            pass
        if self._thread.is_alive():
            self._warn(f"has not finished within {self._close_seconds:.0f} s and is abandoned")
        if self._dropped:
            self._warn(f"was too slow for {self._dropped} records, which are missing there")

    def _put(self, method: str, *arguments: Any) -> None:
        try:
            self._waiting.put_nowait((method, arguments))
        except queue.Full:
            self._dropped += 1

    def _work(self, build: Callable[[], Sink]) -> None:
        while self._shows_until_room_ends(build) and self._finds_room():
            pass

    def _shows_until_room_ends(self, build: Callable[[], Sink]) -> bool:
        """Pass on records until the end or a failure; return whether it failed because the disk is full."""
        ended = False
        try:
            sink = build()
            while (item := self._waiting.get()) is not None:
                method, arguments = item
                getattr(sink, method)(*arguments)
                self._require_room()
            ended = True
            self._require_room(now=True)
            sink.close()
        except Exception as error:
            full = not ended and self._is_full()
            what = "until there is space again" if full else "from now on"
            self._warn(f"failed ({type(error).__name__}: {error}); training continues without it {what}")
            if not ended and not full:
                self._discard()
            return full
        return False

    def _require_room(self, *, now: bool = False) -> None:
        """Check every few seconds that a small file can be written: this detects a quota or a full disk."""
        directory = self._directory
        if directory is not None and directory.is_dir() and (now or time.monotonic() >= self._next_probe):
            self._try_to_write(directory, _PROBE_BYTES)

    def _is_full(self, size: int = _PROBE_BYTES) -> bool:
        if self._directory is None:
            return False
        try:
            self._try_to_write(self._directory, size)
        except OSError as error:
            return error.errno in (errno.ENOSPC, errno.EDQUOT)
        return False

    def _try_to_write(self, directory: Path, size: int) -> None:
        self._next_probe = time.monotonic() + _PROBE_SECONDS
        probe = directory / f".room-{threading.get_ident()}"
        try:
            probe.write_bytes(bytes(size))
        finally:
            probe.unlink(missing_ok=True)

    def _finds_room(self) -> bool:
        """Drop records while the disk is full; return whether there was space again before the end."""
        missed = 0
        while self._waiting.get() is not None:
            missed += 1
            if time.monotonic() >= self._next_probe and not self._is_full(_BACK_BYTES):
                self._warn(f"has space again and continues; {missed} records are missing there")
                return True
        return False

    def _discard(self) -> None:
        """Drop all further records, so that the queue does not fill up."""
        while self._waiting.get() is not None:
            pass

    def _warn(self, text: str) -> None:
        _log.warning("%s %s; metrics.jsonl has everything", self._name, text)
