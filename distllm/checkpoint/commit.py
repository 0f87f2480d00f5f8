"""Make a checkpoint appear whole or not at all, whenever the writer dies. Imports no torch.

Files are written to ``step-….partial.<token>``, each flushed to disk, then the manifest, and last the
marker. Then the directory is flushed, renamed to its final name, and its parent flushed. An existing
checkpoint of the same step is first renamed to ``step-….replaced.<token>``, and gets its name back if the
writer dies before the new one has it. Removing a checkpoint begins with a rename as well
(``….removed.<token>``).

Several ranks may write files of one checkpoint; one of them begins it, and commits it when all have written
theirs. Only one run at a time writes to a directory; the token names the process that has begun, so that the
remains of dead writers can be recognised and removed.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import xxhash

from distllm.checkpoint.format import MANIFEST, MARKER, FileRecord, encode_manifest, step_path, verify
from distllm.errors import StorageError
from distllm.fsio import digest_bytes, fsync_directory, fsync_file, storage_errors
from distllm.machine import is_alive

Buffer = bytes | memoryview
_PARTIAL, _REPLACED, _REMOVED = "partial", "replaced", "removed"
_LEFT_BEHIND = re.compile(
    rf"(?P<original>step-\d+)\.(?P<kind>{_PARTIAL}|{_REPLACED}|{_REMOVED})"
    r"\.(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}"
)


class Files:
    """The files of one checkpoint that this process writes.

    Args:
        path: the directory that `begin` has created.

    Attributes:
        records: size and digest of each file that was written, by name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.records: dict[str, FileRecord] = {}

    def write(self, name: str, *chunks: Buffer) -> None:
        """Write one file of these bytes, flush it to disk, and record its digest.

        Other threads keep running: writing and hashing a large chunk release the interpreter lock.
        """
        digest, size = xxhash.xxh3_128(), 0
        with (self._path / name).open("wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
                digest.update(chunk)
                size += memoryview(chunk).nbytes
            _flush(stream)
        self.records[name] = FileRecord(size, digest.hexdigest())


def _write_flushed(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        _flush(stream)


def _flush(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def begin(directory: Path, step: int) -> Path:
    """Clean up after dead writers, and return a new directory for the files of ``step``.

    Raises:
        StorageError: it cannot be created.
    """
    partial = _with_token(step_path(Path(directory), step), _PARTIAL)
    with write_errors(directory, step):
        Path(directory).mkdir(parents=True, exist_ok=True)
        recover(directory)
        partial.mkdir()
    return partial


def commit(partial: Path, directory: Path, step: int, files: Mapping[str, FileRecord]) -> None:
    """Turn ``partial``, which holds the flushed ``files``, into the checkpoint of ``step``.

    Raises:
        StorageError: a file that another machine has written is not visible here, or the disk fails.
    """
    for name, record in files.items():
        path = partial / name
        if not path.exists() or path.stat().st_size != record.bytes:
            raise StorageError(
                f"checkpoint of step {step} could not be written: {name} is not as its rank has written it",
                where=str(partial),
                remedy="put runs_dir on a file system that all machines share",
            )
    with write_errors(directory, step):
        manifest = encode_manifest(files)
        _write_flushed(partial / MANIFEST, manifest)
        _write_flushed(partial / MARKER, digest_bytes(manifest).encode())
        fsync_directory(partial)
        _publish(partial, step_path(Path(directory), step))


def abandon(partial: Path) -> None:
    """Remove the files of a checkpoint that will not be committed."""
    shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def write_errors(directory: Path, step: int) -> Iterator[None]:
    """Turn the operating system's errors inside the block into StorageError."""
    try:
        with storage_errors(step_path(Path(directory), step)):
            yield
    except OSError as error:
        raise StorageError(
            f"checkpoint of step {step} could not be written: {error}",
            where=str(directory),
            remedy="check the disk, then run the same command again",
        ) from error


@contextmanager
def adopted(directory: Path, step: int) -> Iterator[Path]:
    """Yield an empty directory for a complete checkpoint of ``step`` that is copied from elsewhere.

    After the block it is verified, flushed, and gets its final name; if any of that fails, nothing appears.

    Raises:
        CheckpointError: the copy is not complete.
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
    """Finish or undo what dead writers left in ``directory``.

    Raises:
        StorageError: a directory cannot be renamed.
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
    """Remove a checkpoint. It is renamed first, so that a part of it is never taken for a checkpoint."""
    doomed = _with_token(path, _REMOVED)
    with storage_errors(path):
        path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _with_token(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}.{kind}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")


def _is_other_live_process(host: str, pid: int) -> bool:
    """Whether a writer's process, other than this one, is still running on this machine.

    A writer on another machine cannot be alive: this process owns the run directory.
    """
    return host == socket.gethostname() and pid != os.getpid() and is_alive(pid)
