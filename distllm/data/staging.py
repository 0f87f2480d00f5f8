"""A directory that is whole or absent: built under another name, owned by one process, renamed last."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from types import TracebackType

from distllm.errors import RunDirectoryBusy, StorageError
from distllm.fsio import fsync_directory, storage_errors

PARTIAL_SUFFIX = ".partial"
_LOCK_FILE = ".lock"


class Staging:
    """Builds the directory ``out`` in ``<out>.partial``; ``commit`` renames it into place.

    Leaving the block without a commit removes what was built. What a killed process left behind is
    removed by the next one: the lock of the partial directory dies with its owner.

    Raises:
        RunDirectoryBusy: another live process is building the same directory.
        StorageError: the partial directory cannot be made.
    """

    def __init__(self, out: Path) -> None:
        self._out = Path(os.path.realpath(out))
        self.directory = self._out.with_name(self._out.name + PARTIAL_SUFFIX)
        self._committed = False

    def __enter__(self) -> Staging:
        self._lock = self._take_lock()
        for leftover in self.directory.iterdir():
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            elif leftover.name != _LOCK_FILE:
                leftover.unlink()
        return self

    def commit(self) -> None:
        """Make everything in ``directory`` durable under the final name."""
        with storage_errors(self._out):
            for parent, _, _ in os.walk(self.directory):
                fsync_directory(Path(parent))
            self.directory.rename(self._out)
            self._committed = True
            (self._out / _LOCK_FILE).unlink()
            fsync_directory(self._out.parent)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # after a commit the partial name is free and may be another process's by now
        if not self._committed:
            shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._lock)

    def _take_lock(self) -> int:
        """Lock the partial directory's lock file and return its descriptor."""
        path = self.directory / _LOCK_FILE
        while True:
            lock = self._open_lock(path)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(lock)
                raise RunDirectoryBusy(
                    f"another process is preparing {self._out}",
                    where=str(path),
                    remedy="wait for it, stop it, or choose another data.out",
                ) from error
            if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
                return lock
            os.close(lock)  # its directory was renamed or removed since it was opened

    def _open_lock(self, path: Path) -> int:
        while True:
            try:
                with storage_errors(self.directory):
                    self.directory.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
                raise StorageError(
                    f"cannot make the directory {self.directory}: {error}",
                    where=str(self._out),
                    remedy="choose another data.out, or remove the file that is in the way",
                ) from error
            try:
                with storage_errors(path):
                    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:
                continue  # another process removed or renamed the directory in between
