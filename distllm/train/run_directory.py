"""A run's directory: what lies in it, who owns it, and what an earlier attempt left."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distllm.cluster.fence import Fence
from distllm.config.compose import Composition
from distllm.config.explain import explanation
from distllm.config.resolve import Resolved
from distllm.config.yaml import to_yaml
from distllm.errors import ConfigError, RunDirectoryBusy
from distllm.fsio import atomic_write_json, atomic_write_text, ensure_writable, read_json, storage_errors

CONFIG_FILE = "config.yaml"
OWNER_FILE = "owner.json"
ENVIRONMENT_FILE = "environment.json"


class RunDirectory:
    """``runs_dir/name`` and the files in it.

    Args:
        path: the directory; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.config = path / CONFIG_FILE

    def claim(self) -> None:
        """Become the only live process that writes here.

        Raises:
            RunDirectoryBusy: another live process on this or another machine owns the directory.
            StorageError: the directory cannot be written.
        """
        ensure_writable(self.path)
        owner, fence = self.path / OWNER_FILE, Fence.read(os.environ)
        claim: dict[str, Any] = _identity() | ({"fence": str(fence)} if fence else {})
        # Of two processes that find the same dead owner, one judges and writes before the other.
        with storage_errors(owner), _locked(self.path):
            if owner.exists():
                _refuse_if_alive(owner, fence)
            atomic_write_json(owner, claim)

    def require_owned(self) -> None:
        """Make sure that no later start of this run has taken the directory over.

        Raises:
            RunDirectoryBusy: it has; what this process would publish is no longer wanted.
        """
        owner = self.path / OWNER_FILE
        try:
            claim = json.loads(owner.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            claim = {}
        if any(claim.get(name) != value for name, value in _identity().items()):
            raise RunDirectoryBusy(
                f"this start of the run has lost its directory to pid {claim.get('pid')} "
                f"on {claim.get('host')}",
                where=str(owner),
                remedy="nothing is lost: the later start goes on from the last checkpoint",
            )

    def release(self) -> None:
        """Give the directory up, if this process owns it."""
        owner = self.path / OWNER_FILE
        if owner.exists() and read_json(owner).items() >= _identity().items():
            owner.unlink()

    def write_configuration(self, composition: Composition, resolved: Resolved) -> None:
        """Write the resolved configuration, where each value came from, and the DeepSpeed JSON."""
        atomic_write_text(self.config, to_yaml(asdict(composition.config)))
        atomic_write_json(self.path / "explain.json", explanation(composition, resolved))
        atomic_write_json(self.path / "deepspeed.json", resolved.deepspeed)

    def write_environment(self, attempt: int, facts: Mapping[str, Any]) -> None:
        """Note what an attempt was made with, beside what the attempts before it were."""
        path = self.path / ENVIRONMENT_FILE
        known = read_json(path) if path.exists() else {}
        atomic_write_json(path, {**known, str(attempt): dict(facts)})


def locate_run(run: str, runs_dir: str = "runs") -> RunDirectory:
    """Return the directory of a run given by its name or path.

    Raises:
        ConfigError: there is no such run.
    """
    candidates = [Path(run), Path(runs_dir) / run]
    for path in candidates:
        if (path / CONFIG_FILE).is_file():
            return RunDirectory(path)
    known = sorted(path.parent.name for path in Path(runs_dir).glob(f"*/{CONFIG_FILE}"))
    raise ConfigError(
        f"no run {run!r}",
        where=" or ".join(str(path) for path in candidates),
        remedy=f"runs here: {', '.join(known)}"
        if known
        else "train one first: distllm train experiment=demo",
    )


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory, which the kernel gives back however this process ends."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _identity() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _start_ticks(os.getpid())}


def _refuse_if_alive(owner: Path, fence: Fence | None) -> None:
    """Raise unless the owner is of this machine and dead, or an earlier start of this very job."""
    try:
        claim = json.loads(owner.read_text(encoding="utf-8"))
        host, pid, started = claim["host"], claim["pid"], claim["started"]
    except (OSError, ValueError, KeyError):
        return  # killed while claiming: nobody owns it
    if host == socket.gethostname() and _start_ticks(pid) != started:
        return
    if fence is not None and fence.shuts_out(claim.get("fence")):
        return
    raise RunDirectoryBusy(
        f"another process is training in this directory: pid {pid} on {host}",
        where=str(owner),
        remedy=f"wait for it, stop it (kill {pid}), or choose another name=...; "
        f"if {host} is known to be dead, remove {owner}",
    )


def _start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot: a pid alone is used again."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1]
    except OSError:
        return None
    fields = after_name.split()
    return None if fields[0] == "Z" else int(fields[19])
