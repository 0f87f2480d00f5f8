"""The file of document ids next to a shard: gzip of one escaped id a line, in the order of the documents.

Only backslashes and line feeds are escaped. The line of a forgotten document is a sequence that no
escaped id has, so its place is kept without its name.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

from distllm.errors import DataError

_FORGOTTEN_LINE = "\\-"


def encode_ids(document_ids: Sequence[str | None]) -> bytes:
    """Return the content of the file; None stands for a forgotten document."""
    lines = [_FORGOTTEN_LINE if id_ is None else _escape(id_) for id_ in document_ids]
    text = "".join(line + "\n" for line in lines)
    return gzip.compress(text.encode("utf-8", "surrogatepass"), compresslevel=9, mtime=0)


def decode_ids(content: bytes, where: Path) -> list[str | None]:
    """Return the ids in the order of the documents; None for a forgotten one.

    Raises:
        DataError: the content is no such file.
    """
    try:
        text = gzip.decompress(content).decode("utf-8", "surrogatepass")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(
            f"{where} is no list of document ids: {error}",
            where=str(where),
            remedy="restore the file from a copy, or prepare the dataset again",
        ) from error
    return [None if line == _FORGOTTEN_LINE else _unescape(line) for line in text.split("\n")[:-1]]


def _escape(id_: str) -> str:
    return id_.replace("\\", "\\\\").replace("\n", "\\n")


def _unescape(line: str) -> str:
    parts = line.split("\\\\")  # an escaped backslash first, so that what follows it is not its letter
    return "\\".join(part.replace("\\n", "\n") for part in parts)
