"""The format of checkpoints on disk, and how to tell a complete one from a damaged one. Imports no torch.

    checkpoints/
      step-000000100/
        model-00000.safetensors …   weights, fp32, by logical name
        optim-00000.safetensors …   moments, fp32, by logical name
        state.json                  the caller's numbers and facts, update count, versions, topology
        manifest.json               size and xxh3-128 digest of every file above
        COMMITTED                   digest of manifest.json, written last: without it nothing is valid
      step-000000050.quarantined/   damaged; kept for inspection
      step-000000150.partial.…/     being written, or left by a writer that died

Nothing in the names or shapes depends on ranks, ZeRO stage or engine.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distllm.errors import CheckpointError, StorageError
from distllm.fsio import digest_bytes, digest_file

FORMAT = 1
STATE = "state.json"
MANIFEST = "manifest.json"
MARKER = "COMMITTED"
QUARANTINED = "quarantined"

_STEP_NAME = re.compile(r"step-(\d{9,})")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and digest (xxh3-128, hexadecimal) of one file."""

    bytes: int
    xxh3_128: str


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A checkpoint whose files were verified."""

    step: int
    path: Path
    files: Mapping[str, FileRecord]

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(record.bytes for record in self.files.values())


def step_path(directory: Path, step: int) -> Path:
    """Return the path of the checkpoint of ``step``."""
    return Path(directory) / f"step-{step:09d}"


def step_of(path: Path) -> int:
    """Return the step in the name of a checkpoint, also of a quarantined or partial one.

    Raises:
        ValueError: it is not named like a checkpoint.
    """
    match = _STEP_NAME.match(path.name)
    if match is None:
        raise ValueError(f"{path} is not named like a checkpoint")
    return int(match.group(1))


def list_checkpoints(directory: Path) -> list[Path]:
    """Return the paths of all checkpoints, newest first, without looking inside."""
    found = {}
    for path in _entries(directory):
        match = _STEP_NAME.fullmatch(path.name)
        if match and path.is_dir():
            found[int(match.group(1))] = path
    return [found[step] for step in sorted(found, reverse=True)]


def list_quarantined(directory: Path) -> list[Path]:
    """Return the paths of checkpoints that were set aside as damaged."""
    return sorted(path for path in _entries(directory) if path.suffix.startswith(f".{QUARANTINED}"))


def _entries(directory: Path) -> list[Path]:
    return list(Path(directory).iterdir()) if Path(directory).is_dir() else []


def encode_manifest(files: Mapping[str, FileRecord]) -> bytes:
    """Return the content of ``manifest.json``."""
    records = {name: asdict(record) for name, record in sorted(files.items())}
    return json.dumps({"files": records}, indent=2).encode()


def verify(path: Path) -> CheckpointInfo:
    """Check that the checkpoint at ``path`` is committed and that all its bytes are as written.

    Raises:
        CheckpointError: it is not; the message names the file and the problem.
        StorageError: there is no permission to read a file.
    """
    try:
        files = listed_files(path)
        for name, record in files.items():
            _verify_file(path / name, record)
    except PermissionError as error:
        raise StorageError(
            f"not permitted to read {error.filename}",
            where=str(path),
            remedy="change the file's permissions",
        ) from error
    except OSError as error:
        raise _damaged(path, f"cannot be read: {error}") from error
    return CheckpointInfo(step_of(path), path, files)


def listed_files(path: Path) -> dict[str, FileRecord]:
    """Return the records in the manifest of the committed checkpoint ``path``, by file name.

    Raises:
        CheckpointError: it was never committed, or the manifest has changed since.
        OSError: the manifest cannot be read.
    """
    if not (path / MARKER).exists():
        raise _damaged(path / MARKER, "is missing: the checkpoint was never committed")
    content = (path / MANIFEST).read_bytes()
    if digest_bytes(content) != (path / MARKER).read_text(errors="replace").strip():
        raise _damaged(path / MANIFEST, "is not what was committed")
    try:
        files = {name: FileRecord(**record) for name, record in json.loads(content)["files"].items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(path / MANIFEST, f"is not a manifest: {error!r}") from error
    if any(Path(name).name != name for name in files):
        raise _damaged(path / MANIFEST, "names files outside the checkpoint")
    return files


def _verify_file(path: Path, record: FileRecord) -> None:
    if not path.exists():
        raise _damaged(path, "is missing")
    size = path.stat().st_size
    if size != record.bytes:
        raise _damaged(path, f"has {size} bytes instead of {record.bytes}")
    if digest_file(path) != record.xxh3_128:
        raise _damaged(path, "has different content from what was written")


def _damaged(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} {problem}",
        where=str(path),
        remedy="resume from another checkpoint, or restore this one from a copy",
    )


def newest_verified(
    directory: Path, *, quarantine: bool = True
) -> tuple[CheckpointInfo | None, list[tuple[Path, str]]]:
    """Return the newest valid checkpoint, and the damaged ones that are newer, each with the reason.

    Args:
        directory: the run's checkpoint directory.
        quarantine: rename damaged ones, so that they are neither tried again nor counted as kept; only the
            process that owns the run directory may do so.

    Raises:
        CheckpointError: there are checkpoints, some perhaps in quarantine, and none of them is valid.
        StorageError: a file cannot be read or renamed.
    """
    damaged: list[tuple[Path, str]] = []
    for path in list_checkpoints(directory):
        try:
            return verify(path), damaged
        except CheckpointError as error:
            now_at = set_aside(path) if quarantine else path
            damaged.append((now_at, error.cause))
            _log.warning("checkpoint %s is damaged (%s); it is kept as %s", path.name, error.cause, now_at)
    rejected = [f"{path.name}: {reason}" for path, reason in damaged]
    rejected += [
        f"{path.name}: set aside earlier" for path in list_quarantined(directory) if path not in dict(damaged)
    ]
    if rejected:
        raise CheckpointError(
            f"none of the {len(rejected)} checkpoints can be used ({'; '.join(rejected)})",
            where=str(directory),
            remedy="restore a checkpoint from a copy; to start over on purpose, choose another run name",
        )
    return None, damaged


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint to ``….quarantined``, with a number if that name is taken."""
    target = path.with_name(f"{path.name}.{QUARANTINED}")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.{QUARANTINED}-{number}")
    try:
        path.rename(target)
    except OSError as error:
        raise StorageError(
            f"cannot set the damaged checkpoint {path.name} aside: {error}",
            where=str(path),
            remedy="move it away by hand",
        ) from error
    return target


def newest_state(directory: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint whose ``state.json`` is as written, and what it holds; None without one.

    Its other files are not read: a resumed run looks at them, and may begin at an older checkpoint.
    """
    for path in list_checkpoints(directory):
        try:
            return path, read_state(path)
        except CheckpointError as error:
            _log.warning("checkpoint %s is damaged (%s)", path.name, error.cause)
    return None


def read_state(path: Path) -> dict[str, Any]:
    """Read ``state.json`` of a checkpoint, whose other files may be damaged.

    Raises:
        CheckpointError: the checkpoint was never committed, this file is not as written, or another
            version of distllm wrote it in a format this one does not know.
    """
    try:
        record = listed_files(path).get(STATE)
        if record is None:
            raise _damaged(path / MANIFEST, f"lists no {STATE}")
        _verify_file(path / STATE, record)
    except OSError as error:
        raise _damaged(path, f"cannot be read: {error}") from error
    state: dict[str, Any] = json.loads((path / STATE).read_bytes())
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"{path.name} has checkpoint format {state['format']}, this distllm knows {FORMAT}",
            where=str(path / STATE),
            remedy=f"use the version that wrote it: {state.get('versions')}",
        )
    return state
