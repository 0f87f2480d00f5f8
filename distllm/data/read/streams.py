"""Bytes of a file as text formats need them: decompressed by content, line by line, within bounds."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from distllm.config.schema_read import ReadConfig
from distllm.data.records import Dropped
from distllm.data.remote import fetch, is_remote
from distllm.errors import DataError

_GZIP, _BZIP2, _XZ, _ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_MAGIC_BYTES = 6
_SKIP_BYTES = 1 << 20
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)
COMPRESSED_SUFFIXES = ("", ".gz", ".bz2", ".xz", ".zst")


class DamagedFile(Exception):
    """The rest of a file cannot be read: it is cut off, or not in its format."""


@contextmanager
def local_copy(path: str, read: ReadConfig) -> Iterator[Path]:
    """Yield a local file with the content of ``path``, which may be a URL."""
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="distllm-") as directory:
        target = Path(directory) / (path.rstrip("/").rsplit("/", 1)[-1] or "file")
        fetch(path, target, read.stall_seconds)
        yield target


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open ``path`` for reading, decompressed if its first bytes are those of a compressed file.

    Raises:
        DamagedFile: inside the block, where the compressed stream is cut or damaged.
    """
    with path.open("rb") as raw:
        magic = raw.read(_MAGIC_BYTES)
        raw.seek(0)
        try:
            with _decompressed(raw, magic, path) as stream:
                yield stream
        except _DAMAGE as error:
            raise DamagedFile(str(error)) from error
        except OSError as error:
            if not is_compressed(magic) or error.errno is not None:
                raise
            raise DamagedFile(str(error)) from error


def file_is_compressed(path: Path) -> bool:
    """Whether the content of ``path`` is compressed, whatever its name says."""
    with path.open("rb") as raw:
        return is_compressed(raw.read(_MAGIC_BYTES))


def is_compressed(magic: bytes) -> bool:
    """Whether a file that begins with ``magic`` is compressed in a known way."""
    return magic.startswith((_GZIP, _BZIP2, _XZ, _ZSTD))


def _decompressed(raw: IO[bytes], magic: bytes, path: Path) -> Any:
    if magic.startswith(_GZIP):
        return gzip.GzipFile(fileobj=raw)
    if magic.startswith(_BZIP2):
        return bz2.BZ2File(raw)
    if magic.startswith(_XZ):
        return lzma.LZMAFile(raw)
    if magic.startswith(_ZSTD):
        return _ZstdFile(path)
    return raw


class _ZstdFile:
    """A zstd file read through pyarrow, as a context manager with ``read`` and ``readline``."""

    def __init__(self, path: Path) -> None:
        import io

        import pyarrow as pa

        self._stream = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
        self._lines = io.BufferedReader(cast(Any, self._stream))

    def __enter__(self) -> IO[bytes]:
        return cast(IO[bytes], self._lines)

    def __exit__(self, *_: object) -> None:
        self._lines.close()


def read_lines(
    stream: IO[bytes], limit: int, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, bytes | None]]:
    """Yield the offset of each line that begins in ``[start, stop)``, and its bytes.

    A line of more than ``limit`` bytes yields None and is never held in memory.
    """
    offset = start
    if start:
        stream.seek(start - 1)
        offset = start - 1 + _skip_line(stream, limit, stop)
    while stop is None or offset < stop:
        line = stream.readline(limit + 1)
        if not line:
            return
        size = len(line)
        if size > limit and not line.endswith(b"\n"):
            yield offset, None
            size += _skip_line(stream, limit, stop)
        else:
            yield offset, line
        offset += size


def _skip_line(stream: IO[bytes], limit: int, stop: int | None) -> int:
    """Read past the end of the line, or past ``stop`` if that comes first; return the number of bytes."""
    skipped = 0
    while piece := stream.readline(min(limit, _SKIP_BYTES)):
        skipped += len(piece)
        if piece.endswith(b"\n") or (stop is not None and stream.tell() >= stop):
            break
    return skipped


def read_whole(path: Path, name: str, read: ReadConfig) -> bytes | Dropped:
    """Return the whole content of a file, or why it is refused.

    Raises:
        DamagedFile: it is compressed and damaged.
    """
    try:
        with open_bytes(path) as stream:
            content = stream.read(read.max_document_bytes + 1)
    except OSError as error:
        return Dropped(name, "unreadable", str(error))
    if len(content) > read.max_document_bytes:
        return Dropped(name, "too_large", f"more than data.max_document_bytes={read.max_document_bytes}")
    return content


def decode(content: bytes, name: str, read: ReadConfig) -> str | Dropped:
    """Return ``content`` as text, or why it is not text."""
    if (nul := content.find(b"\0")) >= 0 and read.encoding.lower().startswith("utf-8"):
        return Dropped(name, "not_text", f"NUL byte at offset {nul}")
    try:
        return content.decode(read.encoding).removeprefix("\ufeff")  # no text, but a mark of the encoding
    except UnicodeDecodeError as error:
        reason = (
            f"byte {content[error.start]:#04x} at offset {error.start} is not {read.encoding}, data.encoding"
        )
        return Dropped(name, "undecodable", reason)
    except LookupError as error:
        raise DataError(
            f"unknown encoding {read.encoding!r}",
            where="data.encoding",
            remedy="use utf-8, latin-1, cp1252, ...",
        ) from error
