"""A remote dataset as a local directory whose shards are fetched when they are first read.

The small files of ``data.out=s3://...`` or ``https://...`` are fetched first, the manifest last. A
shard is fetched whole, checked against its digest, and renamed; one process of a machine fetches it
while the others wait. When the shards exceed ``data.cache_bytes``, those that were opened longest ago
are removed; a process that has one of them mapped keeps its content.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from distllm.config.schema import DataConfig
from distllm.data.manifest import INDEX_FILE, MANIFEST_FILE, MIRROR_FILE, Manifest, ShardRecord
from distllm.data.remote import fetch, is_remote
from distllm.errors import DataError
from distllm.fsio import atomic_write_json, digest_bytes, digest_file, read_json, storage_errors

_DEFAULT_CACHE = Path("~/.cache/distllm/datasets")
_LOCK, _FRESH = ".lock", ".fresh"
_ATTEMPTS = 2


def dataset_directory(data: DataConfig) -> Path:
    """Return the local directory of ``data.out``: itself, or the mirror of a URL.

    Raises:
        DataError: the URL cannot be reached, or holds no prepared dataset.
        StorageError: the mirror cannot be written.
    """
    if not is_remote(data.out):
        return Path(data.out)
    root = Path(data.cache_dir).expanduser() if data.cache_dir else _DEFAULT_CACHE.expanduser()
    return _mirrored(data.out.rstrip("/"), root, data.cache_bytes, data.stall_seconds)


@cache
def _mirrored(url: str, root: Path, limit: int | None, stall_seconds: float) -> Path:
    directory = root / digest_bytes(url.encode())
    with _locked(directory, "small"):
        fresh, current = directory / _FRESH / MANIFEST_FILE, directory / MANIFEST_FILE
        fetch(f"{url}/{MANIFEST_FILE}", fresh, stall_seconds)
        if not current.is_file() or current.read_bytes() != fresh.read_bytes():
            current.unlink(missing_ok=True)
            for name in sorted({INDEX_FILE, *Manifest.read(fresh.parent).files}):
                fetch(f"{url}/{name}", directory / name, stall_seconds)
            fresh.replace(current)
        atomic_write_json(
            directory / MIRROR_FILE, {"url": url, "cache_bytes": limit, "stall_seconds": stall_seconds}
        )
    return directory


def local_shard(directory: Path, record: ShardRecord) -> Path:
    """Return the file of a shard, fetched first if ``directory`` is a mirror that does not have it.

    Another process may remove the file of a mirror to make room; if opening fails, call this again.

    Raises:
        DataError: it cannot be reached, or what comes is not what the manifest says.
        StorageError: the disk is full.
    """
    path = directory / record.path
    if not (directory / MIRROR_FILE).is_file():
        return path
    if not _is_here(path, record):
        with _locked(directory, record.path.replace("/", "-")):
            if not _is_here(path, record):
                mirror = read_json(directory / MIRROR_FILE)
                _fetch_checked(f"{mirror['url']}/{record.path}", path, record, mirror["stall_seconds"])
                _evict(directory, path, mirror["cache_bytes"])
    with suppress(FileNotFoundError):  # another process has just removed it
        os.utime(path)
    return path


def _is_here(path: Path, record: ShardRecord) -> bool:
    return path.is_file() and path.stat().st_size == record.bytes


def _fetch_checked(url: str, path: Path, record: ShardRecord, stall_seconds: float) -> None:
    arrived = path.with_name(f".{path.name}.arrived")
    for _ in range(_ATTEMPTS):
        fetch(url, arrived, stall_seconds)
        if digest_file(arrived) == record.digest:
            arrived.replace(path)
            return
    arrived.unlink()
    raise DataError(
        f"{url} is not the shard that its manifest names: its digest is another",
        where=url,
        remedy="copy the dataset there again; distllm data verify tells whether the copy you have is whole",
    )


def _evict(directory: Path, keep: Path, limit: int | None) -> None:
    """Remove the shards that were opened longest ago until the rest is at most ``limit`` bytes."""
    if limit is None:
        return
    found = []
    for file in directory.glob("*/*/*.tar"):
        with suppress(FileNotFoundError):  # other processes make room at the same time
            found.append((file.stat().st_mtime_ns, file.stat().st_size, file))
    total = sum(size for _, size, _ in found)
    for _, size, file in sorted(found):
        if total <= limit:
            return
        if file != keep:
            total -= size
            file.unlink(missing_ok=True)


@contextmanager
def _locked(directory: Path, name: str) -> Iterator[None]:
    """Hold the lock ``name``, which one process of this machine can have at a time."""
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / f"{_LOCK}-{name}", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
