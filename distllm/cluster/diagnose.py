"""Why a start of a run ended: the earliest error over all ranks, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distllm.fsio import read_tail

_TAIL_BYTES = 1 << 18
_HEAD = re.compile(
    r"^(Traceback \(most recent call last\):|distllm: (?!asked to stop).+)",  # a request to stop is no error
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
        rank: the rank whose log holds it.
        cause: the kind of error, in words.
        excerpt: the error as it was printed.
        remedy: what to do.
        log: the log file.
    """

    rank: int
    cause: str
    excerpt: str
    remedy: str
    log: Path


def first_error(logs: Path, pattern: str = "rank-*.log") -> Finding | None:
    """Return the earliest error in the ranks' logs of one start; None if they hold none.

    A rank that lost its peer comes after one with an error of its own, whatever the clocks say: the loss is
    a consequence. Otherwise the log that was last written to first counts.

    Args:
        logs: directory of the start.
        pattern: names of the logs; they end in ``-`` and the number of the rank.
    """
    found = [finding for path in sorted(logs.glob(pattern)) if (finding := _read(path)) is not None]
    return min(
        found,
        key=lambda one: (one.cause == "a peer was lost", one.log.stat().st_mtime, one.rank),
        default=None,
    )


def _read(path: Path) -> Finding | None:
    text = read_tail(path, _TAIL_BYTES).decode(errors="replace")
    head = _HEAD.search(text)
    if head is None:
        killed = re.search(r"^.*(?:Killed|oom[-_ ]kill|signal 9).*$", text, re.MULTILINE)
        return _finding(path, killed[0]) if killed else None
    return _finding(path, text[head.start() :])


def _finding(path: Path, excerpt: str) -> Finding:
    lines = excerpt.strip().splitlines()
    # The last line of a traceback says what happened; in distllm's own messages the first one does.
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
    """Return the last lines of a file, however long it is; none of a file that does not exist."""
    if not path.exists():
        return ()
    return read_tail(path, _TAIL_BYTES).decode(errors="replace").splitlines()[-lines:]
