"""What a run has learnt about the memory of its ranks: the micro-batch that did not fit.

A rank that runs out of memory writes ``memory.json`` into the run directory; the next attempt of the
same command reads it here and takes half of that micro-batch, accumulated twice as often, so that
the global batch stays what it was. Deleting the file forgets it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from distllm.errors import IntegrityError
from distllm.fsio import atomic_write_json, read_json

FILE = "memory.json"


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A micro-batch that did not fit.

    Attributes:
        micro_batch_tokens: its size, in tokens of one rank.
        step: where it did not fit.
        rank: the rank that had no memory for it.
        report: what was in use, in words.
        path: the file that says so.
    """

    micro_batch_tokens: int
    step: int
    rank: int
    report: str
    path: str = ""

    @property
    def allowed_tokens(self) -> int:
        """Largest micro-batch to try next, in tokens of one rank."""
        return self.micro_batch_tokens // 2

    def __str__(self) -> str:
        return (
            f"half of the {self.micro_batch_tokens} tokens for which rank {self.rank} had no memory "
            f"in step {self.step}, see {self.path}"
        )


def write_memory_limit(run_directory: Path, limit: MemoryLimit) -> None:
    """Note for the attempts to come what did not fit."""
    content = asdict(limit)
    del content["path"]
    atomic_write_json(run_directory / FILE, content)


def read_memory_limit(run_directory: Path) -> MemoryLimit | None:
    """Return what an earlier attempt noted, or None.

    Raises:
        IntegrityError: the file is not what `write_memory_limit` writes.
    """
    path = run_directory / FILE
    if not path.exists():
        return None
    try:
        return MemoryLimit(**read_json(path), path=str(path))
    except TypeError as error:
        raise IntegrityError(
            f"{path} is no memory limit: {error}", where=str(path), remedy=f"delete {path}"
        ) from error
