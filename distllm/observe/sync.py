"""The process next to an online run that uploads what the run writes offline.

``python -m distllm.observe.sync DIRECTORY RUN_ID PID SERVER`` uploads what the attempts of the run have
written in DIRECTORY, one after the other, and follows the newest file while process PID lives. It tries again
when the server does not answer. It outlives PID by `LAST_SECONDS` at most; what is not uploaded by then, the
next attempt or ``wandb sync`` uploads. One such process works at a time: the next waits for the one before.

What it knows of the upload stands in `STATE_FILE`, everything that the client says in ``sync.log``.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Self

from distllm.fsio import atomic_write_json
from distllm.machine import is_alive

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
# By this the client finds the service of the run that it is started from, which dies with that run.
_SERVICE_OF_THE_RUN = "WANDB_SERVICE"


@dataclass(frozen=True, slots=True)
class Upload:
    """How the upload stands.

    Attributes:
        url: where the run is shown, once the server has told.
        problem: why nothing is uploaded now; empty if nothing is known to be wrong.
    """

    url: str = ""
    problem: str = ""


def start_sync(directory: Path, run_id: str, server: str) -> None:
    """Start the process for the offline run whose attempts write below ``directory``; ``server`` is a URL."""
    (directory / STATE_FILE).unlink(missing_ok=True)
    with (directory / LOG_FILE).open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "distllm.observe.sync", str(directory), run_id, str(os.getpid()), server],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name != _SERVICE_OF_THE_RUN},
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
    return sorted(file for file in files if not file.with_suffix(".wandb.synced").exists())


def follow(directory: Path, run_id: str, pid: int, server: str, command: list[str] | None = None) -> bool:
    """Upload until the run has ended and everything is uploaded, or time is up; return whether it is.

    Args:
        directory: of the run's offline attempts.
        run_id: the run that its attempts are fragments of.
        pid: the process that writes.
        server: URL that is asked where the client says nothing.
        command: what uploads a file, ``wandb`` by default.
    """
    upload = command or [sys.executable, "-m", "wandb", "beta", "sync", "--yes", "--id", run_id]
    writer = _Writer(pid)
    with _alone(directory, writer):
        while files := not_uploaded(directory, run_id):
            if writer.is_long_gone():
                return False
            with _Report(directory, server) as report:
                _upload(upload, files[0], report, writer, is_newest=len(files) == 1)
            if files[0] in not_uploaded(directory, run_id):
                _pause(writer, RETRY_SECONDS)
            elif writer.lives():
                _pause(writer, _POLL_SECONDS)
    return True


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
        self._silent = threading.Timer(SILENT_SECONDS, self._ask)
        self._silent.daemon = True

    def __enter__(self) -> Self:
        self._silent.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._silent.cancel()

    def read(self, process: subprocess.Popen[str]) -> None:
        """Pass on what the client says until it ends, and note where the run is shown, or what is wrong."""
        for line in process.stdout or ():
            print(line, end="", flush=True)
            if url := re.search(r"View run .* at (\S+)", line):
                self._silent.cancel()
                self._note(Upload(url=url[1]))
            elif problem := re.match(r"(?:wandb: ERROR |[\w.]*Error: )(.*)", line):
                self._silent.cancel()
                self._note(Upload(url=read_upload(self._directory).url, problem=problem[1]))

    def _ask(self) -> None:
        """Note why the server cannot be reached; whatever it answers, it can."""
        try:
            urllib.request.urlopen(self._server, timeout=ANSWER_SECONDS).close()
        except urllib.error.HTTPError:
            pass
        except (OSError, ValueError) as error:
            self._note(Upload(problem=str(getattr(error, "reason", error))))

    def _note(self, upload: Upload) -> None:
        with suppress(OSError):
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


def _upload(command: list[str], file: Path, report: _Report, writer: _Writer, *, is_newest: bool) -> None:
    """Upload one file, and follow it while it is being written.

    The client waits for ever for the end of a file whose writer was killed, so the file is given one.
    """
    follows = is_newest and writer.lives()
    if not follows:
        _end_file(file)
    words = [*command, *(["--live"] if follows else []), str(file.absolute())]
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        cwd=file.parents[2],  # it writes logs below wandb/ of where it stands: the run directory
    ) as process:
        reader = threading.Thread(target=report.read, args=(process,))
        reader.start()
        ended = not follows
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
            if not ended and not writer.lives() and time.time() - file.stat().st_mtime > QUIET_SECONDS:
                _end_file(file)
                ended = True
            if writer.is_long_gone():  # with its service, which may be in the middle of a request
                os.killpg(process.pid, signal.SIGKILL)
                break
        process.wait()
        reader.join()


def _end_file(file: Path) -> None:
    from distllm.observe.wandb_file import end_file

    end_file(file, exit_code=1)


def _pause(writer: _Writer, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and writer.lives():
        time.sleep(_POLL_SECONDS)
    time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(0 if follow(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]) else 1)
