"""Why a start of a run ended: the earliest error over all ranks, and what it means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TAIL_BYTES = 1 << 18
_HEAD = re.compile(
    r"^(Traceback \(most recent call last\):|distllm: (?!asked to stop).+)",  # which is no error
    re.MULTILINE,
)
_PEER_LOST = re.compile(
    r"Connection (closed by peer|reset by peer)|Broken pipe|NCCL communicator was aborted"
    r"|Socket Timeout|remote process exited|connectFullMesh|another rank",
    re.IGNORECASE,
)
GPU_FAILED, KILLED = "a GPU failed", "a rank was killed"
CAUSES = (
    ("out of GPU memory", r"CUDA out of memory|OutOfMemoryError", "lower engine.micro_batch_tokens"),
    ("out of memory", r"oom[-_ ]kill|Out Of Memory|MemoryError|bad_alloc", "raise cluster.slurm.memory"),
    ("no space on the disk", r"No space left|no space left|Disk quota", "free space, or move runs_dir"),
    ("a collective timed out", r"Watchdog caught|Timed out waiting", "a rank is slow, dead or cut off"),
    ("damaged data", r"IntegrityError|DataError|CheckpointError|TokenizerError", "distllm data verify"),
    ("the configuration", r"problems? in the configuration|ConfigError", "correct it, submit again"),
    (GPU_FAILED, r"Xid|CUDA error|uncorrectable ECC|NVLink", "cluster.slurm.exclude=[that node]"),
    ("a module is missing", r"ModuleNotFoundError|ImportError|loading shared", "see cluster.setup"),
    ("a peer was lost", _PEER_LOST.pattern, "another rank or node died first: look at its log"),
    (KILLED, r"Killed|SIGKILL|exited due to signal", "memory, or the node: ask the scheduler"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """The error that came first.

    Attributes:
        rank: whose log it is in.
        cause: its kind, in words.
        excerpt: the error as it was printed.
        remedy: what to do.
        log: the file.
    """

    rank: int
    cause: str
    excerpt: str
    remedy: str
    log: Path


def first_error(logs: Path, pattern: str = "rank-*.log") -> Finding | None:
    """Return the earliest error in the ranks' logs of one start; None if they hold none.

    The logs are those that match ``pattern``, their names end in ``-`` and the number of the rank.

    A rank that lost its peer comes after one that has an error of its own, whatever its clock says:
    the loss is a consequence. Among equals the log that was written to first counts.
    """
    found = [finding for path in sorted(logs.glob(pattern)) if (finding := _read(path)) is not None]
    return min(
        found,
        key=lambda one: (one.cause == "a peer was lost", one.log.stat().st_mtime, one.rank),
        default=None,
    )


def _read(path: Path) -> Finding | None:
    with path.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, 2) - _TAIL_BYTES))
        text = stream.read().decode(errors="replace")
    heads = list(_HEAD.finditer(text))
    if not heads:
        killed = re.search(r"^.*(?:Killed|oom[-_ ]kill|signal 9).*$", text, re.MULTILINE)
        return _finding(path, killed[0]) if killed else None
    return _finding(path, text[heads[0].start() :])


def _finding(path: Path, excerpt: str) -> Finding:
    lines = excerpt.strip().splitlines()
    # A traceback tells what happened at its end; our own messages at their beginning.
    shown = lines[-8:] if lines[0].startswith("Traceback") else lines[:8]
    text = "\n".join(shown)
    cause, remedy = classify(text)
    return Finding(int(path.stem.rpartition("-")[2]), cause, text, remedy, path)


def classify(text: str) -> tuple[str, str]:
    """Return the kind of an error message and what to do about it."""
    for cause, pattern, remedy in CAUSES:
        if re.search(pattern, text):
            return cause, remedy
    return "an error", "read the log"


def tail(path: Path, lines: int = 12) -> Sequence[str]:
    """Return the last lines of a file."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:] if path.exists() else ()
