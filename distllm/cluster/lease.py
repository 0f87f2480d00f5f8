"""Who may write in a run directory: one owner at a time, by a lease that expires unless it is renewed.

``owner.json`` names the owner; its modification time is the last renewal. On the owner's machine the
process table shows whether the owner is alive. From another machine only the lease does: it has expired
when it is older than ``LEASE_SECONDS`` by the clock of the file server, which is the modification time
that a file written now gets. File locks are not used: on network file systems they are not reliable
between machines.

An owner that was suspended for so long that another process took over notices at its next renewal, and ends.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distllm.cluster.fence import Fence
from distllm.errors import RunDirectoryBusy, StorageError
from distllm.fsio import atomic_write_json, ensure_writable, storage_errors

OWNER_FILE = "owner.json"
LEASE_SECONDS = 60.0
RENEW_SECONDS = 10.0
TOKEN_VARIABLE = "DISTLLM_LEASE"
_MUTEX = ".owner.lock"
_MUTEX_SECONDS = 10.0
_POLL_SECONDS = 0.01


class Lease:
    """The right to write in one directory; see `take_lease`.

    Attributes:
        token: identifies this owner; ranks get it from the process that supervises them.
        released: whether the lease was given up.
    """

    def __init__(self, owner: Path, token: str) -> None:
        self._owner = owner
        self._renewed = time.monotonic()
        self.token = token
        self.released = False

    def renew(self) -> None:
        """Renew the lease if the last renewal is more than `RENEW_SECONDS` ago.

        Raises:
            RunDirectoryBusy: another process has taken over.
        """
        if self.released or time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        self._renewed = time.monotonic()
        # A file server that fails now may be back before the lease has expired.
        with suppress(OSError):
            os.utime(self._owner)
        require_lease(self._owner.parent, self.token)

    def release(self) -> None:
        """Give up the directory, unless another process has taken it over."""
        self.released = True
        claim = _read(self._owner)
        if claim is not None and claim.get("token") == self.token:
            self._owner.unlink(missing_ok=True)


def take_lease(directory: Path) -> Lease:
    """Become the only process that may write in ``directory``.

    Raises:
        RunDirectoryBusy: another live process on this or another machine owns the directory.
        StorageError: the directory cannot be written.
    """
    ensure_writable(directory)
    owner, token = directory / OWNER_FILE, secrets.token_hex(8)
    fence = Fence.read(os.environ)
    claim = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": start_ticks(os.getpid()),
        "token": token,
    } | ({"fence": str(fence)} if fence else {})
    with storage_errors(owner), _mutex(directory) as now:
        _refuse_if_alive(owner, now, fence)
        atomic_write_json(owner, claim)
    return Lease(owner, token)


def holds_lease(directory: Path, token: str | None) -> bool:
    """Whether ``token`` belongs to the owner of ``directory``."""
    claim = _read(directory / OWNER_FILE)
    return token is not None and claim is not None and claim.get("token") == token


def require_lease(directory: Path, token: str | None) -> None:
    """Make sure that ``token`` still belongs to the owner of ``directory``.

    A file server that does not answer says nothing about the owner: the lease is not lost by that.

    Raises:
        RunDirectoryBusy: a later start has taken over the directory.
    """
    owner = directory / OWNER_FILE
    claim = _read(owner)
    if claim is None and not _is_missing(owner):
        return
    if claim is None or claim.get("token") != token:
        who = f"pid {claim['pid']} on {claim['host']}" if claim else "a process that has ended since"
        raise RunDirectoryBusy(
            f"this start of the run has lost its directory to {who}",
            where=str(owner),
            remedy="nothing is lost: the later start continues from the last checkpoint",
        )


def _is_missing(owner: Path) -> bool:
    try:
        owner.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _read(owner: Path) -> dict[str, Any] | None:
    """Return the owner's claim; None if there is no owner, or the file cannot be read."""
    try:
        claim = json.loads(owner.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return claim if isinstance(claim, dict) and claim.keys() >= {"host", "pid", "started"} else None


def _refuse_if_alive(owner: Path, now: float, fence: Fence | None) -> None:
    """Raise unless the owner is dead as far as this machine can tell, or is an earlier start of this job.

    Args:
        owner: the owner's file.
        now: the time of the file server.
        fence: which start of the job this is.
    """
    claim = _read(owner)
    if claim is None or (fence is not None and fence.supersedes(claim.get("fence"))):
        return
    host, pid = claim["host"], claim["pid"]
    age = now - owner.stat().st_mtime
    if host == socket.gethostname():
        if start_ticks(pid) != claim["started"]:
            return
        remedy = f"wait for it, stop it (kill {pid}), or choose another name=..."
    elif age > LEASE_SECONDS:
        return
    else:
        remedy = (
            f"wait for it, stop it there, or choose another name=...; if {host} is dead, the lease expires "
            f"in {LEASE_SECONDS - age:.0f} s; after that the same command takes over"
        )
    raise RunDirectoryBusy(
        f"another process is training in this directory: pid {pid} on {host}, "
        f"lease renewed {max(0.0, age):.0f} s ago",
        where=str(owner),
        remedy=remedy,
    )


@contextmanager
def _mutex(directory: Path) -> Iterator[float]:
    """Let one process at a time examine the owner; yields the time of the file server.

    The mutex is a file that only one process can create. It is held for milliseconds, so one that is
    older than ``_MUTEX_SECONDS`` was left behind by a process that died.
    """
    path = directory / _MUTEX
    mine = directory / f"{_MUTEX}.{secrets.token_hex(4)}"
    deadline = time.monotonic() + 2 * _MUTEX_SECONDS
    while True:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            break
        except FileExistsError:
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{path} is held by a process that does not release it",
                    where=str(path),
                    remedy="remove it if no distllm process runs in this directory",
                ) from None
        with suppress(FileNotFoundError):
            mine.touch()
            stale = mine.stat().st_mtime - path.stat().st_mtime > _MUTEX_SECONDS
            mine.unlink()
            if stale:
                path.unlink()
        time.sleep(_POLL_SECONDS)
    try:
        yield path.stat().st_mtime
    finally:
        path.unlink(missing_ok=True)


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot: the system reuses process ids.

    None if there is no such process, or it has ended and its parent has not waited for it yet.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1]
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESRCH):
            raise
        return None
    fields = after_name.split()
    return None if fields[0] == "Z" else int(fields[19])
