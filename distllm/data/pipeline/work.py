"""Results of tasks by content address, so that no process repeats finished work.

A *task* is a pure function whose key is a digest of everything its result depends on. Its result is
the directory ``<work>/<stage>/<key>``, built under another name and renamed when it is whole, so an
interrupted task leaves nothing that could be taken for finished. Any number of processes, on one
machine or on many that share the directory, run the same list of tasks: each takes tasks that no
other has taken, and waits for the rest.

A claim is an advisory lock that dies with its owner. It only saves work: if a file system has no
locks and two processes do the same task, both make the same bytes and one result is discarded.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from distllm.data.records import Progress
from distllm.errors import IntegrityError
from distllm.fsio import digest_bytes, digest_file, fsync_directory, fsync_file, read_json, storage_errors
from distllm.machine import release_memory

FACTS_FILE = "facts.json"
LOG_SUFFIX = ".jsonl"
Tick = Callable[[int], None]
Report = Callable[[Progress], None]

_KEY_DIGITS = 24
_POLL_SECONDS = 0.1
_SECONDS_BETWEEN_REPORTS = 0.2
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)


def address(*ingredients: Any) -> str:
    """Return the key of a result that depends on ``ingredients``, which must be JSON values."""
    text = json.dumps(ingredients, sort_keys=True, separators=(",", ":"))
    return digest_bytes(text.encode("utf-8", "surrogatepass"))[:_KEY_DIGITS]


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of a stage.

    Attributes:
        key: content address of the result, from `address`.
        size: amount of work, in bytes, for the progress bar.
        perform: writes the result into the directory it is given, says with ``tick(bytes)`` how far
            it is, and returns facts (JSON values) about the result.
    """

    key: str
    size: int
    perform: Callable[[Path, Tick], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Result:
    """A finished task: its directory, the facts it returned, and the digest of what it wrote.

    Later stages are addressed by ``digest``, so an unchanged result does not repeat them.
    """

    key: str
    directory: Path
    digest: str
    facts: Mapping[str, Any]


class Claim(Enum):
    """Who has a task: this process, another, or unknown because the file system has no locks."""

    MINE = "mine"
    TAKEN = "taken"
    UNKNOWN = "unknown"


class WorkDirectory:
    """The results of all tasks below one directory.

    Args:
        directory: where results live.
        report: called with how far each stage is, by all processes together.
    """

    def __init__(self, directory: Path, report: Report) -> None:
        self.directory = directory
        self._report = report

    def run(
        self, stage: str, tasks: Sequence[Task], unless: Callable[[], bool] | None = None
    ) -> list[Result]:
        """Return the results of ``tasks`` in their order, performing those that no process has done.

        ``unless`` says when the results are no longer needed; then nothing is returned.

        Raises:
            StorageError: the disk is full or not writable.
        """
        home = self.directory / stage
        with storage_errors(home):
            home.mkdir(parents=True, exist_ok=True)
            board = _Board(stage, home, tasks, self._report)
            while pending := board.pending():
                if unless is not None and unless():
                    return []
                performed = [self._attempt(home, task, board) for task in pending]
                if not any(performed):
                    time.sleep(_POLL_SECONDS)
            board.report(final=True)
            try:
                return [_result(home, task.key) for task in tasks]
            except IntegrityError:
                if unless is None or not unless():
                    raise
                return []  # whoever used the results has cleared them since

    def _attempt(self, home: Path, task: Task, board: _Board) -> bool:
        """Perform ``task`` unless it is done or claimed; return whether this process did it."""
        final = home / task.key
        if final.is_dir():
            return False
        with claim(home / f"{task.key}.lock") as whose:
            if whose is Claim.TAKEN or final.is_dir():
                return False
            if whose is Claim.MINE:
                for leftover in home.glob(f"{task.key}.partial-*"):
                    shutil.rmtree(leftover, ignore_errors=True)
            partial = home / f"{task.key}.partial-{uuid.uuid4().hex}"
            partial.mkdir()
            try:
                facts = dict(task.perform(partial, board.tick))
                record = {"digest": _digest(partial), "facts": facts}
                (partial / FACTS_FILE).write_text(json.dumps(record, sort_keys=True) + "\n", encoding="utf-8")
                _commit(partial, final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                board.finished(task)
                release_memory()
        return True


def _result(home: Path, key: str) -> Result:
    record = read_json(home / key / FACTS_FILE)
    return Result(key, home / key, record["digest"], record["facts"])


def _digest(directory: Path) -> str:
    """Return the digest of a result's files, without logs, which are not part of it."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.suffix != LOG_SUFFIX)
    return address([[str(path.relative_to(directory)), digest_file(path)] for path in files])


def _commit(partial: Path, final: Path) -> None:
    """Make a result durable under its name, unless an equal one exists by now."""
    for parent, _, names in os.walk(partial):
        for name in names:
            fsync_file(Path(parent, name))
        fsync_directory(Path(parent))
    try:
        partial.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    fsync_directory(final.parent)


@contextmanager
def claim(path: Path) -> Iterator[Claim]:
    """Hold the lock file ``path`` for the block, unless another process does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        whose = lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield whose
        if whose is not Claim.TAKEN:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def lock(descriptor: int, kind: int) -> Claim:
    """Take an advisory lock of ``kind`` (see `fcntl.flock`) on an open file; it ends with the process."""
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        return Claim.TAKEN
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return Claim.UNKNOWN
    return Claim.MINE


class _Board:
    """Which tasks of a stage are done, and the progress of this process on its own."""

    def __init__(self, stage: str, home: Path, tasks: Sequence[Task], report: Report) -> None:
        self._stage, self._home, self._report = stage, home, report
        self._open = {task.key: task for task in tasks}
        self._count = len(self._open)
        self._total = sum(task.size for task in self._open.values())
        self._own = 0
        self._reported_at = 0.0
        self.pending()
        self._reused = self._count - len(self._open)
        self.report(final=not self._open)

    def pending(self) -> list[Task]:
        """Return the tasks that no process has finished."""
        done = [key for key in self._open if (self._home / key).is_dir()]
        for key in done:
            del self._open[key]
        return list(self._open.values())

    def tick(self, size: int) -> None:
        """Note that ``size`` bytes of the task in hand are done."""
        self._own = size
        if time.monotonic() - self._reported_at >= _SECONDS_BETWEEN_REPORTS:
            self.pending()
            self.report()

    def finished(self, task: Task) -> None:
        """Note that this process has finished ``task``."""
        self._own = 0
        self._open.pop(task.key, None)
        self.report()

    def report(self, *, final: bool = False) -> None:
        """Report, unless that was done a moment ago."""
        now = time.monotonic()
        if not final and now - self._reported_at < _SECONDS_BETWEEN_REPORTS:
            return
        self._reported_at = now
        done = self._total - sum(task.size for task in self._open.values()) + self._own
        parts = f"{self._count - len(self._open)}/{self._count} parts"
        note = f"{parts}, {self._reused} reused" if self._reused else parts
        self._report(Progress(self._stage, min(done, self._total), self._total, "bytes", note))
