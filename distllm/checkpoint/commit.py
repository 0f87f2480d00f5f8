"""Make a checkpoint appear whole or not at all, whatever moment the writer dies. Imports no torch.

Files go into ``step-….partial.<token>``, each flushed to disk; the manifest and then the marker
come last; the directory is flushed, renamed to its name, and its parent flushed. A checkpoint of
the same step is first renamed to ``step-….replaced.<token>``, and comes back if the writer dies
before the new one has the name. Removal, too, begins with a rename (``….removed.<token>``).

Several ranks may write files of one checkpoint; one of them begins it, and commits it when all have
written theirs. One run at a time writes to a directory; the token names the process that has begun, so
that what dead writers left can be told apart and removed.
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
        path: the directory that `begin` has made.

    Attributes:
        records: what was written, by file name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.records: dict[str, FileRecord] = {}

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
        self.records[name] = FileRecord(size, digest.hexdigest())


def _write_flushed(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        _flush(stream)


def _flush(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def begin(directory: Path, step: int) -> Path:
    """Return a new directory for the files of ``step``, once what dead writers left is cleared up.

    Raises:
        StorageError: it cannot be made.
    """
    partial = _with_token(step_path(Path(directory), step), _PARTIAL)
    with write_errors(directory, step):
        Path(directory).mkdir(parents=True, exist_ok=True)
        recover(directory)
        partial.mkdir()
    return partial


def commit(partial: Path, directory: Path, step: int, files: Mapping[str, FileRecord]) -> None:
    """Make the checkpoint of ``step`` out of ``files``, which lie flushed in ``partial``.

    Raises:
        StorageError: a file that another machine has written does not arrive here; or the disk.
    """
    for name, record in files.items():
        path = partial / name
        if not path.exists() or path.stat().st_size != record.bytes:
            raise StorageError(
                f"checkpoint of step {step} could not be written: {name} is not what its rank has written",
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
    """Remove what was written of a checkpoint that is not to be."""
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
    return host == socket.gethostname() and pid != os.getpid() and is_alive(pid)
