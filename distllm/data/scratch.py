"""Arrays in files: as long as they must be, and in memory only as far as there is room.

The kernel drops mapped pages and reads them again as it likes, so an array of a value a document costs
disk, not memory. The files have no names: nothing is left of them however the process ends.

Shapes: N values.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Scratch:
    """Makes arrays in files of ``directory``, None for the system's; each goes when nothing refers to it."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory

    def array(self, size: int, dtype: DTypeLike) -> NDArray[Any]:
        """Return zeros, [N].

        Raises:
            OSError: the disk is full. Space is taken now: a mapped page without any ends the process.
        """
        with self.file() as stream:
            if size:
                os.posix_fallocate(stream.fileno(), 0, size * np.dtype(dtype).itemsize)
            return mapped(stream, dtype)

    def joined(self, parts: Iterable[NDArray[Any]], dtype: DTypeLike) -> NDArray[Any]:
        """Return the values of ``parts`` one after another, [N].

        Raises:
            OSError: the disk is full.
        """
        with self.file() as stream:
            for part in parts:
                append(stream, part.astype(dtype, copy=False))
            return mapped(stream, dtype)

    def file(self) -> IO[bytes]:
        """Open a file without a name, to `append` to and to be `mapped`."""
        return tempfile.TemporaryFile(dir=self._directory)


def append(stream: IO[bytes], values_N: NDArray[Any]) -> None:
    """Append the bytes of ``values_N``."""
    stream.write(np.ascontiguousarray(values_N).view(np.uint8).data)


def mapped(stream: IO[bytes], dtype: DTypeLike) -> NDArray[Any]:
    """Return all values of a file, [N]; the array outlives ``stream``."""
    stream.flush()
    size = os.fstat(stream.fileno()).st_size // np.dtype(dtype).itemsize
    if not size:  # nothing cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(stream, dtype=dtype, mode="r+", shape=(size,)).view(np.ndarray)
