"""Files that are either whole or absent: atomic writes, digests, append-only JSON lines.

A reader never sees a half-written file: content goes to a temporary name in the same directory,
is flushed to the disk, and is renamed; then the directory entry itself is flushed.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import xxhash

from distllm.errors import ConfigError, DataError, IntegrityError, StorageError

TEMPORARY_SUFFIX = ".tmp"
_BLOCK = 1 << 20
_NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
"""How file systems that cannot flush a directory (SMB, some FUSE) answer."""


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's disk errors inside the block into StorageError for ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(
                f"no space left while writing {path}",
                where=str(path),
                remedy="free disk space or point the path at another disk, then run the same command again",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(
                f"not permitted to write {path}",
                where=str(path),
                remedy="choose a directory you can write to, or change its permissions",
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST) and (blocker := _file_on_the_way(path)):
            raise StorageError(
                f"cannot make the directory {blocker}: it is a file or a broken link",
                where=str(path),
                remedy=f"move {blocker} away, or choose another path",
            ) from error
        if error.errno == errno.ENAMETOOLONG:
            raise StorageError(
                f"a name is too long for the file system: {error.filename or path}",
                where=str(path),
                remedy="choose a shorter path",
            ) from error
        if error.errno == errno.ENOENT and _keeps_no_files(path):
            raise StorageError(
                f"{path} is on a virtual file system of the kernel, which cannot hold files",
                where=str(path),
                remedy="choose a directory on a disk",
            ) from error
        if error.errno in (errno.EIO, errno.ESTALE):
            raise StorageError(
                f"the disk or file server failed at {error.filename or path}: {error.strerror}",
                where=str(path),
                remedy="look at the kernel's log (dmesg) or ask the administrator of the file server, "
                "then run the same command again",
            ) from error
        raise


def _file_on_the_way(path: Path) -> Path | None:
    """Return the part of ``path``, or ``path`` itself, that exists and is not a directory."""
    return next((part for part in (path, *path.parents) if os.path.lexists(part) and not part.is_dir()), None)


def _keeps_no_files(path: Path) -> bool:
    """Return whether ``path`` is on a file system without blocks, such as /proc."""
    there = next(part for part in (path, *path.absolute().parents) if part.is_dir())
    return os.statvfs(there).f_blocks == 0


@contextmanager
def atomic_open(path: Path) -> Iterator[IO[bytes]]:
    """Open ``path`` for binary writing; it appears under its name only if the block succeeds.

    Raises:
        StorageError: the disk is full, read-only, or not permitted. The temporary file is removed.
    """
    path = Path(path)
    # A process id is unique on one machine only, and containers on several machines often share one.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}{TEMPORARY_SUFFIX}")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            fsync_directory(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def atomic_directory(out: Path, mark: str, staging: Path | None = None) -> Iterator[Path]:
    """Yield a temporary directory that becomes ``out`` if the block succeeds, and vanishes if not.

    Args:
        out: replaced if it holds ``mark`` or is empty; anything else is refused.
        mark: name of a file that every directory of this kind holds.
        staging: the temporary directory, on the same file system as ``out``, for a caller that wants to
            find it again after a kill; None: a new one next to ``out``.

    Raises:
        ConfigError: ``out`` exists and is something else.
        StorageError: ``out`` cannot be written.
    """
    refuse_other_kind(out, mark)
    temporary = staging or out.with_name(f".{out.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    replaced = out.with_name(f".{out.name}.{os.getpid()}.old{TEMPORARY_SUFFIX}")
    with storage_errors(out):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            if out.exists():
                out.rename(replaced)
            temporary.rename(out)
            fsync_directory(out.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)


def refuse_other_kind(out: Path, mark: str) -> None:
    """Refuse a directory that `atomic_directory` would not replace.

    Raises:
        ConfigError: ``out`` is there, is not empty, and holds no ``mark``.
    """
    if out.exists() and not (out / mark).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out} exists and has no {mark}: it was not written by this command",
            where=str(out),
            remedy="choose another directory, or remove this one",
        )


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    with atomic_open(path) as stream:
        stream.write(content)


def atomic_write_text(path: Path, content: str) -> None:
    """Write ``content`` as UTF-8 to ``path``, whole or not at all."""
    atomic_write_bytes(path, content.encode())


def atomic_write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented, key-sorted JSON to ``path``, whole or not at all."""
    atomic_write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        IntegrityError: the file is missing, cannot be read, or holds no JSON object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise IntegrityError(
            f"{path} does not exist", where=str(path), remedy="restore it from a copy, or make it again"
        ) from error
    except OSError as error:
        raise IntegrityError(
            f"{path} cannot be read: {error.strerror}",
            where=str(path),
            remedy="restore it from a copy, or its permissions",
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(
            f"{path} is not valid JSON: {error}",
            where=str(path),
            remedy="restore it from a copy, or make it again",
        ) from error
    if not isinstance(content, dict):
        raise IntegrityError(
            f"{path} holds no JSON object", where=str(path), remedy="restore it from a copy, or make it again"
        )
    return content


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Append one record to a JSON-lines file, whole or not at all.

    Raises:
        StorageError: the disk is full, read-only, or not permitted.
    """
    with storage_errors(path):
        append_line_whole(path, json.dumps(record).encode() + b"\n")


def append_line_whole(path: Path, line: bytes) -> None:
    """Append a line with one write, or nothing of it.

    A part that a full disk has taken is cut off again: the next line would be glued to it.

    Raises:
        OSError: the disk is full, read-only, or not permitted.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        try:
            written = os.write(descriptor, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):  # a device cannot be truncated
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole records of a JSON-lines file; a torn last line (a killed writer) is ignored.

    Raises:
        DataError: another line holds no JSON.
    """
    with Path(path).open(encoding="utf-8") as stream:
        try:
            for line in stream:
                if line.endswith("\n"):
                    yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"a line of {path} is not valid JSON: {error}",
                where=str(path),
                remedy="take that line out of the file, or restore it from a copy",
            ) from error


def read_tail(path: Path, size: int) -> bytes:
    """Return the last ``size`` bytes of a file, or all of a shorter one."""
    with Path(path).open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - size))
        return stream.read(size)


def digest_bytes(content: bytes | memoryview) -> str:
    """Return the xxh3-128 digest of ``content`` in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(content)


def digest_file(path: Path) -> str:
    """Return the xxh3-128 digest of a file's content in hexadecimal."""
    digest = xxhash.xxh3_128()
    with Path(path).open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def fsync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    with Path(path).open("rb") as stream:
        os.fsync(stream.fileno())


def fsync_directory(path: Path) -> None:
    """Flush a directory's entries, so that a rename inside it survives a power cut, if that is possible."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
    finally:
        os.close(descriptor)


def ensure_writable(path: Path) -> None:
    """Create the directory ``path`` and check that a file can be written in it.

    Raises:
        StorageError: the directory cannot be created or written.
    """
    path = Path(path)
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}-{secrets.token_hex(3)}{TEMPORARY_SUFFIX}"
        try:
            probe.write_bytes(b"probe")
        finally:
            probe.unlink(missing_ok=True)


def free_bytes(path: Path) -> int:
    """Return the bytes an ordinary user can still write on the disk that holds ``path``."""
    existing = Path(path).absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free
