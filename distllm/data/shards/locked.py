"""One process at a time changes a dataset."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distllm.errors import RunDirectoryBusy


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a dataset directory, which the kernel releases however this process ends.

    Raises:
        RunDirectoryBusy: another process holds it.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunDirectoryBusy(
                f"another process is changing the dataset {directory}",
                where=str(directory),
                remedy="wait for it, or stop it, then run the same command again",
            ) from error
        yield
    finally:
        os.close(descriptor)
