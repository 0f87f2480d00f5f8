"""Files on other machines: found, identified and copied through fsspec, with retries and deadlines.

A copy is made under another name, checked for its size, and renamed; a transfer without progress
for ``stall_seconds`` is ended and tried again, a few times, before it is an error.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from distllm.errors import DataError, DistllmError, MissingDependency, StorageError
from distllm.extras import require
from distllm.fsio import digest_bytes, fsync_file, storage_errors
from distllm.heartbeat import HEARTBEAT

T = TypeVar("T")
ATTEMPTS = 5
GLOB_MARKS = "*?["
PROTOCOLS = (
    "file", "http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "hdfs", "oci", "oss",
    "ftp", "sftp", "memory",
)  # fmt: skip
"""What URLs may begin with: fsspec knows more, some of which expand templates or chain others."""
_FIRST_PAUSE_SECONDS = 0.2
_MARKS = ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "checksum", "md5")


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URL."""
    return "://" in path


def file_system(url: str, stall_seconds: float) -> tuple[Any, str]:
    """Return the file system of ``url`` and the path in it.

    Raises:
        MissingDependency: the protocol needs a package that is not installed.
        DataError: no such protocol exists.
    """
    fsspec = require("fsspec", "reading a URL")
    protocol = url.split("://", 1)[0]
    if protocol not in PROTOCOLS:
        raise DataError(
            f"cannot read {url}: {protocol!r} is no protocol of files",
            where=url,
            remedy=f"use one of: {', '.join(PROTOCOLS)}",
        )
    try:
        system, path = fsspec.core.url_to_fs(url, **_options(protocol, stall_seconds))
        return system, str(path)
    except ImportError as error:
        raise MissingDependency(
            f"{protocol}:// needs a package that is not installed: {error}",
            where=url,
            remedy="pip install 'distllm[data]'",
        ) from error
    except ValueError as error:
        raise DataError(f"cannot read {url}: {error}", where=url, remedy="correct the URL") from error


def _options(protocol: str, stall_seconds: float) -> dict[str, Any]:
    if protocol in ("http", "https"):
        aiohttp = require("aiohttp", "reading a URL")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=stall_seconds, sock_read=stall_seconds)
        return {"client_kwargs": {"timeout": timeout}}
    if protocol in ("s3", "s3a"):
        config = {"connect_timeout": stall_seconds, "read_timeout": stall_seconds}
        return {"config_kwargs": config, "use_listings_cache": False}
    return {}


def fingerprint(url: str, stall_seconds: float) -> tuple[str, int]:
    """Return what identifies the content of ``url``, and its size in bytes (-1: unknown).

    Raises:
        DataError: it cannot be reached.
    """
    system, path = file_system(url, stall_seconds)
    info = _patiently(url, lambda: system.info(path))
    marks = [f"{name}={info[name]}" for name in _MARKS if info.get(name) is not None]
    size = info.get("size")
    return digest_bytes("\n".join(marks).encode()), -1 if size is None else int(size)


def fetch(url: str, target: Path, stall_seconds: float) -> None:
    """Copy ``url`` to ``target``, whole or not at all.

    Raises:
        DataError: it cannot be reached, or every attempt stalled, broke or was cut short.
        StorageError: the disk is full or not writable.
    """
    system, path = file_system(url, stall_seconds)
    size = _patiently(url, lambda: system.info(path)).get("size")
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    _patiently(url, lambda: _copy(system, path, target, size))


def read_bytes(url: str, stall_seconds: float) -> bytes:
    """Return the content of a small file.

    Raises:
        DataError: it cannot be reached, or does not exist.
    """
    system, path = file_system(url, stall_seconds)
    content: bytes = _patiently(url, lambda: system.cat_file(path))
    return content


def list_files(url: str, stall_seconds: float) -> list[str]:
    """Return the paths of all files below ``url``, relative to it and sorted; none if it does not exist.

    Raises:
        DataError: it cannot be reached.
    """
    system, path = file_system(url, stall_seconds)

    def find() -> list[str]:
        system.invalidate_cache()
        return sorted(str(found) for found in system.find(path))

    root = path.strip("/")
    return [found.strip("/").removeprefix(root).strip("/") for found in _patiently(url, find)]


def expand(url: str, suffixes: tuple[str, ...], stall_seconds: float) -> list[str]:
    """Return the URLs that ``url`` stands for, sorted: matches of a glob, or files below a directory.

    Of a directory, only files that end in one of ``suffixes`` are taken. Any other URL stands for itself.

    Raises:
        DataError: it cannot be reached.
    """
    system, path = file_system(url, stall_seconds)

    def find() -> list[str] | None:
        if any(mark in path for mark in GLOB_MARKS):
            return sorted(system.glob(path))
        if not url.startswith("http") and system.isdir(path):
            return sorted(name for name in system.find(path) if str(name).endswith(suffixes))
        return None

    names = _patiently(url, find)
    return [url] if names is None else [str(system.unstrip_protocol(name)) for name in names]


def send(content: Path | bytes, url: str, stall_seconds: float) -> None:
    """Write a file, or these bytes, to ``url``.

    Raises:
        StorageError: it cannot be written, or is not as long there as here.
    """
    system, path = file_system(url, stall_seconds)
    size = len(content) if isinstance(content, bytes) else content.stat().st_size

    def put() -> None:
        # Object stores have no directories; other file systems need them first.
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
        if isinstance(content, bytes):
            system.pipe_file(path, content)
        else:
            system.put_file(str(content), path)
        system.invalidate_cache()
        arrived = system.info(path).get("size")
        if arrived not in (None, size):
            raise _CutShortError(f"{arrived} of {size} bytes arrived")

    _patiently(url, put, _unwritable)


def remove(url: str, stall_seconds: float) -> None:
    """Remove the file ``url`` if it exists.

    Raises:
        StorageError: it cannot be removed.
    """
    system, path = file_system(url, stall_seconds)

    def rm() -> None:
        with suppress(FileNotFoundError):
            system.rm_file(path)

    _patiently(url, rm, _unwritable)


def _copy(system: Any, path: str, target: Path, size: int | None) -> None:
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with storage_errors(target):
            system.get_file(path, str(temporary), callback=_beating(target))
            fsync_file(temporary)
        copied = temporary.stat().st_size
        if size is not None and copied != size:
            raise _CutShortError(f"{copied} of {size} bytes came")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _beating(target: Path) -> Any:
    """Return a callback for fsspec that reports each piece, so a slow transfer is not taken for a hang."""
    fsspec = require("fsspec", "reading a URL")
    return fsspec.callbacks.Callback(hooks={"beat": lambda *_, **__: HEARTBEAT.reading(target)})


class _CutShortError(OSError):
    """A transfer ended early without saying so."""


Failure = Callable[[str, Exception, str], DistllmError]


def _unreachable(url: str, error: Exception, remedy: str) -> DistllmError:
    what = str(error) or type(error).__name__
    return DataError(f"cannot read {url}: {what}", where=url, remedy=remedy)


def _unwritable(url: str, error: Exception, remedy: str) -> DistllmError:
    what = str(error) or type(error).__name__
    return StorageError(f"cannot write {url}: {what}", where=url, remedy=remedy)


def _patiently(url: str, attempt: Callable[[], T], failure: Failure = _unreachable) -> T:
    """Return ``attempt()``, tried again after growing pauses while the network fails."""
    pause = _FIRST_PAUSE_SECONDS
    for number in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except StorageError:
            raise  # of the disk here, which no other attempt cures
        except (FileNotFoundError, PermissionError) as error:
            raise failure(url, error, "correct the URL, or the credentials in the environment") from error
        except Exception as error:  # each protocol has exceptions of its own
            if number == ATTEMPTS:
                raise failure(url, error, "try again later; what is finished is kept") from error
        time.sleep(pause)
        pause *= 2
    raise AssertionError("unreachable: the last attempt returns or raises")
