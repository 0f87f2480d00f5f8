"""Who may write in a run directory: one owner at a time, by a lease that ends when nobody renews it.

``owner.json`` names the owner; its modification time is the last renewal. On the owner's machine the
process itself tells whether it lives. From another machine only the lease can: it has expired when
it is older than ``LEASE_SECONDS`` by the clock of the file server, which is the time that a file
written now gets there. No lock of the file system is used: those of network file systems are not
trusted between machines.

An owner that was suspended so long that another took over finds that out when it renews, and ends.
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
        token: tells this owner from all others; ranks get it from the process that supervises them.
        released: it was given up.
    """

    def __init__(self, owner: Path, token: str) -> None:
        self._owner = owner
        self._renewed = time.monotonic()
        self.token = token
        self.released = False

    def renew(self) -> None:
        """Prolong the lease, if it is time to.

        Raises:
            RunDirectoryBusy: another process has taken over.
        """
        if self.released or time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        self._renewed = time.monotonic()
        # A file server that does not answer now may do so before the lease has expired.
        with suppress(OSError):
            os.utime(self._owner)
        require_lease(self._owner.parent, self.token)

    def release(self) -> None:
        """Give the directory up, unless it is another's by now."""
        self.released = True
        claim = _read(self._owner)
        if claim is not None and claim.get("token") == self.token:
            self._owner.unlink(missing_ok=True)


def take_lease(directory: Path) -> Lease:
    """Become the only process that writes in ``directory``.

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
    """Whether ``token`` is that of the owner of ``directory``."""
    claim = _read(directory / OWNER_FILE)
    return token is not None and claim is not None and claim.get("token") == token


def require_lease(directory: Path, token: str | None) -> None:
    """Make sure that ``token`` is still that of the owner of ``directory``.

    Raises:
        RunDirectoryBusy: a later start has taken the directory over.
    """
    owner = directory / OWNER_FILE
    claim = _read(owner)
    if not owner.exists() or (claim is not None and claim.get("token") != token):
        who = f"pid {claim['pid']} on {claim['host']}" if claim else "one who has left since"
        raise RunDirectoryBusy(
            f"this start of the run has lost its directory to {who}",
            where=str(owner),
            remedy="nothing is lost: the later start goes on from the last checkpoint",
        )


def _read(owner: Path) -> dict[str, Any] | None:
    """Return what an owner claims; None where none does, or one was killed while it wrote."""
    try:
        claim = json.loads(owner.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return claim if isinstance(claim, dict) and claim.keys() >= {"host", "pid", "started"} else None


def _refuse_if_alive(owner: Path, now: float, fence: Fence | None) -> None:
    """Raise unless the owner is dead, as far as can be seen from here, or an earlier start of this job.

    Args:
        owner: the owner's file.
        now: the time of the file server.
        fence: which start this is.
    """
    claim = _read(owner)
    if claim is None or (fence is not None and fence.shuts_out(claim.get("fence"))):
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
            f"wait for it, stop it there, or choose another name=...; if {host} is dead, the lease ends in "
            f"{LEASE_SECONDS - age:.0f} s, and the same command takes over then"
        )
    raise RunDirectoryBusy(
        f"another process is training in this directory: pid {pid} on {host}, "
        f"lease renewed {max(0.0, age):.0f} s ago",
        where=str(owner),
        remedy=remedy,
    )


@contextmanager
def _mutex(directory: Path) -> Iterator[float]:
    """Let one process at a time judge the owner; yields the time of the file server.

    The mutex is a file that only one can create. It is held for milliseconds, so one that is older
    than ``_MUTEX_SECONDS`` was left by a process that died.
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
                    f"{path} is never given back",
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
    """Return when a process started, in clock ticks since boot: a pid alone is used again.

    None if there is no such process, or nobody has waited for it yet.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1]
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESRCH):
            raise
        return None
    fields = after_name.split()
    return None if fields[0] == "Z" else int(fields[19])
