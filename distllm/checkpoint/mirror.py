"""A run's checkpoints at a URL: the same files, in a store that cannot rename. Imports no torch.

    URL/step-000000100/
      *.safetensors, state.json, manifest.json
      COMMITTED     digest of manifest.json, written last and removed first: without it nothing is valid
      REJECTED      why this checkpoint must not be used although it is committed

A checkpoint is first committed in the run's own directory, then sent. A run that starts with an older local
checkpoint, or none, fetches the newest valid one, checks every digest, and commits it locally: all other
code reads local files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distllm.checkpoint.commit import adopted
from distllm.checkpoint.format import MANIFEST, MARKER, STATE, newest_verified, step_of, step_path
from distllm.checkpoint.retention import Retention, Summary, kept, summary_of
from distllm.data import remote
from distllm.errors import CheckpointError, DataError, StorageError
from distllm.fsio import atomic_write_bytes, digest_bytes

REJECTED = "REJECTED"
_STALL_SECONDS = 60.0
_REMEDY = "start from another copy, or remove what is at the URL"


class Mirror:
    """Checkpoints at a URL.

    Args:
        url: directory of one run's checkpoints, in any scheme that fsspec supports.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._summaries: dict[int, Summary] = {}

    def send(self, path: Path) -> None:
        """Copy the committed local checkpoint ``path``; it is valid once its marker has arrived.

        Raises:
            StorageError: it cannot be written.
        """
        name = path.name
        self._withdraw(name)
        files = sorted(file.name for file in path.iterdir() if file.name not in (MANIFEST, MARKER))
        for file in (*files, MANIFEST, MARKER):
            remote.send(path / file, f"{self.url}/{name}/{file}", _STALL_SECONDS)
        self._summaries.pop(step_of(path), None)

    def _withdraw(self, name: str) -> None:
        for mark in (MARKER, REJECTED):
            remote.remove(f"{self.url}/{name}/{mark}", _STALL_SECONDS)

    def steps(self) -> list[int]:
        """Return the steps of committed checkpoints that were not rejected, newest first.

        Raises:
            DataError: the URL cannot be reached.
        """
        return [step for step, files in self._listing().items() if MARKER in files and REJECTED not in files]

    def _listing(self) -> dict[int, set[str]]:
        found: dict[int, set[str]] = {}
        for path in remote.list_files(self.url, _STALL_SECONDS):
            directory, _, file = path.rpartition("/")
            if directory.startswith("step-") and directory.removeprefix("step-").isdigit():
                found.setdefault(step_of(Path(directory)), set()).add(file)
        return dict(sorted(found.items(), reverse=True))

    def bring_newest(self, directory: Path) -> list[str]:
        """Fetch the newest valid checkpoint if ``directory`` has none as new; return notes on what happened.

        A damaged one is rejected, and the one before it is tried.

        Raises:
            CheckpointError: there are checkpoints at the URL or here, and none is valid.
            DataError: the URL cannot be reached.
            StorageError: the disk is full.
        """
        listing = self._listing()
        try:
            here, _ = newest_verified(directory, quarantine=False)
        except CheckpointError:
            if not any(MARKER in files for files in listing.values()):
                raise
            here = None
        notes: list[str] = []
        for step in self.steps():
            if here is not None and step <= here.step:
                break
            try:
                self._fetch(step, directory)
                return [*notes, f"fetched the checkpoint of step {step} from {self.url}"]
            except CheckpointError as error:
                self.reject(step, error.cause)
                notes.append(f"rejected the damaged checkpoint of step {step} at {self.url}: {error.cause}")
        if here is None and any({MARKER, REJECTED} & files for files in listing.values()):
            raise CheckpointError(
                "there are checkpoints and none of them can be used" + "".join(f"; {line}" for line in notes),
                where=self.url,
                remedy="restore one from a copy; to start over on purpose, choose another run name",
            )
        return notes

    def _fetch(self, step: int, directory: Path) -> None:
        base = f"{self.url}/{step_path(directory, step).name}"
        with adopted(directory, step) as partial, _missing_is_damage(base):
            manifest, marker = self._read(f"{base}/{MANIFEST}"), self._read(f"{base}/{MARKER}")
            if digest_bytes(manifest) != marker.decode(errors="replace").strip():
                raise CheckpointError(f"{MANIFEST} is not what was committed", where=base, remedy=_REMEDY)
            atomic_write_bytes(partial / MANIFEST, manifest)
            atomic_write_bytes(partial / MARKER, marker)
            for name in _names(manifest, base):
                remote.fetch(f"{base}/{name}", partial / name, _STALL_SECONDS)

    def _read(self, url: str) -> bytes:
        return remote.read_bytes(url, _STALL_SECONDS)

    def reject(self, step: int, why: str) -> None:
        """Mark the checkpoint of ``step`` as unusable; its files are kept for inspection.

        Raises:
            StorageError: the mark cannot be written.
        """
        name = step_path(Path(), step).name
        remote.send(why.encode(), f"{self.url}/{name}/{REJECTED}", _STALL_SECONDS)

    def reject_after(self, step: int, why: str) -> None:
        """Reject every checkpoint newer than ``step``, to which the run has gone back."""
        for newer in self.steps():
            if newer > step:
                self.reject(newer, why)

    def prune(self, retention: Retention) -> list[int]:
        """Remove the checkpoints that no rule keeps, and remains of dead writers; return their steps.

        The newest, which has just been sent, is always kept. Rejected ones are kept for inspection.

        Raises:
            StorageError: a file cannot be removed, or the URL cannot be reached.
        """
        try:
            return self._prune(retention)
        except DataError as error:
            raise error.recast(StorageError, where=error.where, remedy=error.remedy) from error

    def _prune(self, retention: Retention) -> list[int]:
        listing = self._listing()
        good = [step for step, files in listing.items() if MARKER in files and REJECTED not in files]
        stays = kept([self._summary(step) for step in good], retention)
        doomed = [step for step, files in listing.items() if step not in stays and REJECTED not in files]
        for step in doomed:
            name = step_path(Path(), step).name
            for file in (MARKER, *sorted(listing[step] - {MARKER})):
                remote.remove(f"{self.url}/{name}/{file}", _STALL_SECONDS)
            self._summaries.pop(step, None)
        return doomed

    def _summary(self, step: int) -> Summary:
        """Describe a checkpoint by its state file, which is fetched once."""
        if step not in self._summaries:
            path = step_path(Path(), step)
            state = self._read(f"{self.url}/{path.name}/{STATE}")
            self._summaries[step] = summary_of(path, state)
        return self._summaries[step]


def mirror_of(home: str | None, run: str) -> Mirror | None:
    """Return the mirror for the checkpoints of ``run`` if ``checkpoint.dir`` is a URL, else None."""
    return Mirror(f"{home.rstrip('/')}/{run}") if home is not None and remote.is_remote(home) else None


@contextmanager
def _missing_is_damage(where: str) -> Iterator[None]:
    """Turn a missing file into CheckpointError; a server that does not answer stays a DataError."""
    try:
        yield
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise CheckpointError(f"a file is missing: {error.cause}", where=where, remedy=_REMEDY) from error
        raise


def _names(manifest: bytes, where: str) -> list[str]:
    try:
        names = [str(name) for name in json.loads(manifest)["files"]]
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{MANIFEST} is not a manifest: {error!r}", where=where, remedy=_REMEDY
        ) from error
    if any(Path(name).name != name for name in names):
        raise CheckpointError(f"{MANIFEST} names files outside the checkpoint", where=where, remedy=_REMEDY)
    return names
