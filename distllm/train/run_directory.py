"""The run directory: its files, and which process owns it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distllm.cluster.lease import (
    RENEW_SECONDS,
    TOKEN_VARIABLE,
    Lease,
    holds_lease,
    require_lease,
    take_lease,
)
from distllm.config.compose import Composition
from distllm.config.explain import EXPLANATION_FILE, explanation
from distllm.config.resolve import Resolved
from distllm.config.yaml import to_yaml
from distllm.errors import ConfigError, DistllmError
from distllm.fsio import atomic_write_json, atomic_write_text, ensure_writable, read_json, storage_errors
from distllm.redact import redacted

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"


class RunDirectory:
    """The directory ``runs_dir/name``.

    Args:
        path: the directory; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.config = path / CONFIG_FILE
        self.explanation = path / EXPLANATION_FILE
        self._lease: Lease | None = None

    def claim(self) -> None:
        """Become the only live process that writes here.

        Raises:
            RunDirectoryBusy: another live process on this or another machine owns the directory.
            StorageError: the directory cannot be written.
        """
        if not self.is_supervised:
            self._lease = take_lease(self.path)

    def keep(self) -> None:
        """Renew the claim in the background until the process ends."""
        if self._lease is not None:
            threading.Thread(target=_keep, args=(self._lease,), daemon=True, name="distllm-lease").start()

    @property
    def is_supervised(self) -> bool:
        """Whether this process is a rank whose supervisor owns the directory."""
        return holds_lease(self.path, os.environ.get(TOKEN_VARIABLE))

    def require_owned(self) -> None:
        """Check that no later start of this run has taken over the directory.

        Raises:
            RunDirectoryBusy: one has, so this process must not publish anything.
        """
        require_lease(self.path, self._lease.token if self._lease else os.environ.get(TOKEN_VARIABLE))

    def place_checkpoints(self, target: Path) -> None:
        """Make ``checkpoints`` a link to the directory ``target``.

        Raises:
            ConfigError: the run already has checkpoints in another directory.
            StorageError: the directory cannot be created.
        """
        target = target.absolute()
        ensure_writable(target)
        if self.checkpoints.resolve() == target.resolve():
            return
        if self.checkpoints.is_dir() and any(self.checkpoints.iterdir()):
            home = self.checkpoints.resolve()
            raise ConfigError(
                f"the run's checkpoints are in {home}, not in {target}",
                where="checkpoint.dir",
                remedy=f"move them: mv {home}/* {target}/, or change checkpoint.dir back",
            )
        with storage_errors(self.checkpoints):
            if self.checkpoints.is_symlink():
                self.checkpoints.unlink()
            elif self.checkpoints.is_dir():
                self.checkpoints.rmdir()
            self.checkpoints.symlink_to(target, target_is_directory=True)

    def release(self) -> None:
        """Give up the directory, if this process owns it."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def write_configuration(self, composition: Composition, resolved: Resolved) -> None:
        """Write the resolved configuration, where each value came from, and the DeepSpeed JSON."""
        atomic_write_text(self.config, to_yaml(redacted(asdict(resolved.config))))
        atomic_write_json(self.explanation, redacted(explanation(composition, resolved)))
        atomic_write_json(self.path / "deepspeed.json", resolved.deepspeed)

    def write_environment(self, attempt: int, facts: Mapping[str, Any]) -> None:
        """Add the environment of an attempt to those of the attempts before it."""
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


def _keep(lease: Lease) -> None:
    """Renew a lease until it is released; end the process if another one has taken over."""
    while not lease.released:
        time.sleep(RENEW_SECONDS)
        try:
            lease.renew()
        except DistllmError as error:
            print(f"distllm: {error}", file=sys.stderr, flush=True)
            os._exit(error.exit_code)
