"""The process next to an online run that uploads what the run writes offline.

``python -m distllm.observe.sync FILE RUN_ID PID SERVER`` uploads what earlier attempts of the run have left,
one after the other, and then FILE, which it follows while process PID writes it. It tries again when the
server does not answer. It outlives PID by `LAST_SECONDS` at most; what is not uploaded by then, the next
attempt or ``wandb sync`` uploads. One such process works at a time: the next waits for the one before. It
leaves alone what a later attempt writes: that is still being written, and has a process of its own.

The client uploads a file from its beginning: what had arrived before this process was killed arrives twice.

What it knows of the upload stands in `STATE_FILE`, everything that the client says in ``sync.log``.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Self

from distllm.errors import StorageError
from distllm.fsio import atomic_write_json
from distllm.machine import die_with_parent, is_alive

STATE_FILE = "upload.json"
LOG_FILE = "sync.log"
RETRY_SECONDS = 30.0
LAST_SECONDS = 120.0
QUIET_SECONDS = 3.0
"""How long a dead run's file has not grown when its writer, which outlives the run a little, is gone too."""
SILENT_SECONDS = 3.0
"""When the client, which tries for ever, has said nothing for so long, the server is asked if it is there."""
ANSWER_SECONDS = 30.0
_POLL_SECONDS = 1.0
# By the first a client finds the service of the run, which dies with it; with the second it says nothing.
_NOT_FOR_THE_CLIENT = ("WANDB_SERVICE", "WANDB_SILENT")


@dataclass(frozen=True, slots=True)
class Upload:
    """How the upload stands.

    Attributes:
        url: where the run is shown, once the server has told.
        problem: why nothing is uploaded now; empty if nothing is known to be wrong.
    """

    url: str = ""
    problem: str = ""


def start_sync(file: Path, run_id: str, server: str) -> None:
    """Start the process for the offline run that this process writes to ``file``; ``server`` is a URL."""
    directory = _directory_of(file)
    (directory / STATE_FILE).unlink(missing_ok=True)
    with (directory / LOG_FILE).open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "distllm.observe.sync", str(file), run_id, str(os.getpid()), server],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name not in _NOT_FOR_THE_CLIENT},
        )


def read_upload(directory: Path) -> Upload:
    """Return how the upload of the run stands that writes below ``directory``."""
    try:
        return Upload(**json.loads((directory / STATE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Upload()


def not_uploaded(directory: Path, run_id: str) -> list[Path]:
    """Return the files of the run's attempts that are not known to be uploaded, in order of their start."""
    files = directory.glob(f"offline-run-*/run-{run_id}.wandb")
    return sorted(filter(_is_left, files))


def follow(own: Path, run_id: str, pid: int, server: str, command: Sequence[str] = ()) -> bool:
    """Upload until the attempt has ended and everything is uploaded, or time is up; return whether it is.

    Args:
        own: the file of the attempt, next to whose directory are those of earlier ones.
        run_id: the run that its attempts are fragments of.
        pid: the process that writes ``own``.
        server: URL that is asked where the client says nothing.
        command: what uploads a file, ``wandb`` by default.
    """
    upload = command or [sys.executable, "-m", "wandb", "beta", "sync", "--yes", "--id", run_id]
    directory, writer = _directory_of(own), _Writer(pid)
    earlier = [file for file in not_uploaded(directory, run_id) if file != own]
    with _alone(directory, writer):
        while files := [file for file in (*earlier, own) if _is_left(file)]:
            if writer.is_long_gone():
                return False
            with _Report(directory, server) as report:
                try:
                    _upload(upload, files[0], report, writer, is_own=files[0] == own)
                except OSError as error:  # the disk is full, or the run directory was removed
                    report.note(str(error))
            if _is_left(files[0]):
                _pause(writer, RETRY_SECONDS)
            elif writer.lives():
                _pause(writer, _POLL_SECONDS)
    return True


def _directory_of(file: Path) -> Path:
    """Return the directory that has one directory for each attempt."""
    return file.parents[1]


def _is_left(file: Path) -> bool:
    """Whether a file is there that the client has not marked as uploaded."""
    return file.exists() and not _mark_of(file).exists()


def _mark_of(file: Path) -> Path:
    return file.with_suffix(".wandb.synced")


class _Writer:
    """The process that writes, and since when it is gone."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended: float | None = None

    def lives(self) -> bool:
        if self._ended is None and not is_alive(self._pid):
            self._ended = time.monotonic()
        return self._ended is None

    def is_long_gone(self) -> bool:
        return not self.lives() and time.monotonic() - (self._ended or 0.0) > LAST_SECONDS


class _Report:
    """Keeps in `STATE_FILE` what a user must know of an upload."""

    def __init__(self, directory: Path, server: str) -> None:
        self._directory = directory
        self._server = server
        self._lock, self._heard = threading.Lock(), False
        self._silent = threading.Timer(SILENT_SECONDS, self._ask)
        self._silent.daemon = True

    def __enter__(self) -> Self:
        self._silent.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._hear(None)

    def read(self, process: subprocess.Popen[str]) -> None:
        """Pass on what the client says until it ends, and note where the run is shown, or what is wrong."""
        for line in process.stdout or ():
            print(line, end="", flush=True)
            if url := re.search(r"View run .* at (\S+)", line):
                self._hear(Upload(url=url[1]))
            elif problem := re.match(r"(?:wandb: ERROR |[\w.]*Error: )(.*)", line):
                self._hear(Upload(self._url(), problem[1]))

    def note(self, problem: str) -> None:
        """Note why nothing is uploaded now."""
        self._hear(Upload(self._url(), problem))

    def _hear(self, upload: Upload | None) -> None:
        """Note what is known from now on; what `_ask` finds later is older."""
        self._silent.cancel()
        with self._lock:
            self._heard = True
            if upload is not None:
                self._write(upload)

    def _ask(self) -> None:
        """Note why the server cannot be reached; whatever it answers, it can."""
        try:
            urllib.request.urlopen(self._server, timeout=ANSWER_SECONDS).close()
        except (urllib.error.HTTPError, http.client.HTTPException):
            pass
        except (OSError, ValueError) as error:
            with self._lock:
                if not self._heard:
                    self._write(Upload(self._url(), str(getattr(error, "reason", error))))

    def _url(self) -> str:
        return read_upload(self._directory).url

    def _write(self, upload: Upload) -> None:
        with suppress(OSError, StorageError):
            if self._directory.is_dir():  # a removed run directory is not made again
                atomic_write_json(self._directory / STATE_FILE, asdict(upload))


@contextmanager
def _alone(directory: Path, writer: _Writer) -> Iterator[None]:
    """Wait until no other process uploads this run, as long as this one may live."""
    with (directory / "upload.lock").open("wb") as lock:
        while not _lock(lock):
            if writer.is_long_gone():
                sys.exit("another process uploads this run")
            time.sleep(_POLL_SECONDS)
        yield


def _lock(file: IO[bytes]) -> bool:
    """Lock a file until it is closed, if the file system has locks; False if another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        print(f"no lock on {file.name}, uploading without it: {error}", flush=True)
    return True


def _upload(command: Sequence[str], file: Path, report: _Report, writer: _Writer, *, is_own: bool) -> None:
    """Upload one file, and follow it while it is being written.

    The client waits for ever for the end of a file whose writer was killed, so the file is given one.
    """
    follows = is_own and writer.lives()
    if not follows:
        _end_file(file)
        if not _is_left(file):
            return
    words = [*command, *(["--live"] if follows else []), str(file.absolute())]
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=die_with_parent,  # else it would follow a file for ever, beside the client of the next
        cwd=file.parents[2],  # it writes logs below wandb/ of where it stands: the run directory
    ) as process:
        reader = threading.Thread(target=report.read, args=(process,))
        reader.start()
        try:
            _attend(process, file, writer, follows)
        finally:
            process.kill()  # its service, in a session of its own, ends with it
            process.wait()
            reader.join()


def _attend(process: subprocess.Popen[str], file: Path, writer: _Writer, follows: bool) -> None:
    """Wait for the client, as long as it may work; end the file that it follows once nobody writes it."""
    while process.poll() is None and not writer.is_long_gone():
        time.sleep(_POLL_SECONDS)
        if follows and not writer.lives() and time.time() - file.stat().st_mtime > QUIET_SECONDS:
            _end_file(file)
            follows = False
            if not _is_left(file):
                return


def _end_file(file: Path) -> None:
    """End a file whose writer is dead; mark one that holds no run, which the client would refuse for ever."""
    from distllm.observe.wandb_file import end_file

    if not end_file(file, exit_code=1):
        _mark_of(file).touch()


def _pause(writer: _Writer, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and writer.lives():
        time.sleep(_POLL_SECONDS)
    time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(0 if follow(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]) else 1)
