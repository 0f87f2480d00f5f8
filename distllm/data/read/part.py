"""A part: the unit of reading, with a fingerprint of its content."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """A file, a range of one, or several files that must be read one after the other.

    Attributes:
        source: name of the source.
        paths: the files; more than one only where ``data.max_bytes`` makes reading sequential.
        fingerprint: digest of the content and the range, which determine the documents.
        size: bytes, as far as they are known; at least 1.
        start: first byte, record group or row whose records belong to the part.
        stop: where the next part starts; None for the end.
    """

    source: str
    paths: tuple[str, ...]
    fingerprint: str
    size: int
    start: int = 0
    stop: int | None = None

    @property
    def path(self) -> str:
        """The file, if there is only one."""
        (path,) = self.paths
        return path

    @property
    def name(self) -> str:
        """The file as it is named in ids and messages: text that can be encoded, whatever its bytes."""
        return printable(self.path)


def printable(path: str) -> str:
    """Return ``path`` as text that can be encoded, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")
