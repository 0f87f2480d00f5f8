"""The micro-batch that did not fit into the memory of a rank.

A rank that runs out of memory writes ``memory.json`` to the run directory. The next attempt reads it and
uses half of that micro-batch, accumulated twice as often, so that the global batch stays the same. Delete
the file to remove the limit.
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
        step: the step in which it did not fit.
        rank: the rank that ran out of memory.
        report: the memory in use, in words.
        path: the file that holds the limit.
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
            f"half of the {self.micro_batch_tokens} tokens with which rank {self.rank} ran out of memory "
            f"in step {self.step}, see {self.path}"
        )


def write_memory_limit(run_directory: Path, limit: MemoryLimit) -> None:
    """Store the limit for later attempts."""
    content = asdict(limit)
    del content["path"]
    atomic_write_json(run_directory / FILE, content)


def read_memory_limit(run_directory: Path) -> MemoryLimit | None:
    """Return the limit that an earlier attempt stored, or None.

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
            f"{path} is not a memory limit: {error}", where=str(path), remedy=f"delete {path}"
        ) from error
