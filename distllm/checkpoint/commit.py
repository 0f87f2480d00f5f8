"""Make a checkpoint appear whole or not at all, whatever moment the writer dies. Imports no torch.

Files go into ``step-….partial.<token>``, each flushed to disk; the manifest and then the marker
come last; the directory is flushed, renamed to its name, and its parent flushed. A checkpoint of
the same step is first renamed to ``step-….replaced.<token>``, and comes back if the writer dies
before the new one has the name. Removal, too, begins with a rename (``….removed.<token>``).

One process at a time writes to a run's directory; the token names it, so that what dead writers
left can be told apart and removed.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import xxhash

from distllm.checkpoint.format import MANIFEST, MARKER, FileRecord, encode_manifest, step_path, verify
from distllm.errors import StorageError
from distllm.fsio import digest_bytes, fsync_directory, fsync_file, storage_errors

Buffer = bytes | memoryview
_PARTIAL, _REPLACED, _REMOVED = "partial", "replaced", "removed"
_LEFT_BEHIND = re.compile(
    rf"(?P<original>step-\d+)\.(?P<kind>{_PARTIAL}|{_REPLACED}|{_REMOVED})"
    r"\.(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}"
)


class Transaction:
    """The files of one checkpoint while it is being written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, FileRecord] = {}

    def write(self, name: str, *chunks: Buffer) -> None:
        """Write one file of these bytes, flushed to disk, and note its digest.

        Other threads run meanwhile: neither writing nor digesting a large chunk holds the interpreter.
        """
        digest, size = xxhash.xxh3_128(), 0
        with (self._path / name).open("wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
                digest.update(chunk)
                size += memoryview(chunk).nbytes
            _flush(stream)
        self._files[name] = FileRecord(size, digest.hexdigest())

    def _seal(self) -> None:
        manifest = encode_manifest(self._files)
        _write_flushed(self._path / MANIFEST, manifest)
        _write_flushed(self._path / MARKER, digest_bytes(manifest).encode())
        fsync_directory(self._path)


def _write_flushed(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        _flush(stream)


def _flush(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


@contextmanager
def transaction(directory: Path, step: int) -> Iterator[Transaction]:
    """Write the checkpoint of ``step``; it exists if and only if the block succeeds.

    Raises:
        StorageError: the disk is full, broken, or not permitted. Only what this call wrote is
            removed; earlier checkpoints stay.
    """
    directory = Path(directory)
    final = step_path(directory, step)
    partial = _with_token(final, _PARTIAL)
    try:
        with storage_errors(partial):
            directory.mkdir(parents=True, exist_ok=True)
            recover(directory)
            partial.mkdir()
            files = Transaction(partial)
            yield files
            files._seal()
            _publish(partial, final)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageError(
            f"checkpoint of step {step} could not be written: {error}",
            where=str(directory),
            remedy="check the disk, then run the same command again",
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def adopted(directory: Path, step: int) -> Iterator[Path]:
    """Yield an empty directory to be filled with a whole checkpoint of ``step`` from elsewhere.

    It is verified, flushed, and appears under its name; if the block or that fails, nothing does.

    Raises:
        CheckpointError: what came is not whole.
        StorageError: the disk is full, broken, or not permitted.
    """
    directory = Path(directory)
    final = step_path(directory, step)
    partial = _with_token(final, _PARTIAL)
    try:
        with storage_errors(partial):
            directory.mkdir(parents=True, exist_ok=True)
            partial.mkdir()
            yield partial
            for name in (*verify(partial).files, MANIFEST, MARKER):
                fsync_file(partial / name)
            fsync_directory(partial)
            _publish(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _publish(partial: Path, final: Path) -> None:
    replaced = _with_token(final, _REPLACED)
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    fsync_directory(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def recover(directory: Path) -> None:
    """Finish or undo what writers that died left in ``directory``.

    Raises:
        StorageError: something may not be renamed.
    """
    for path in sorted(Path(directory).glob("step-*")):
        match = _LEFT_BEHIND.fullmatch(path.name)
        if match is None or _is_other_live_process(match["host"], int(match["pid"])):
            continue
        original = path.with_name(match["original"])
        with storage_errors(path):
            if match["kind"] == _REPLACED and not original.exists():
                path.rename(original)
            else:
                shutil.rmtree(path, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a checkpoint; from the first moment on nobody takes what is left of it for one."""
    doomed = _with_token(path, _REMOVED)
    with storage_errors(path):
        path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _with_token(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}.{kind}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")


def _is_other_live_process(host: str, pid: int) -> bool:
    """Whether a writer's process, other than this one, still runs on this machine.

    A writer on another machine cannot be alive: it would own the run directory, and not we.
    """
    if host != socket.gethostname() or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
