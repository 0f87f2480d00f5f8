"""Vectors of a corpus in parts on disk, so that a build that was stopped can go on.

A part is some batches of the corpus. Its file is named by the digest of all inputs (the model, the
precision, the kind of device, the texts), and begins with the digest of its content. So an undamaged part
found under its name is exactly what this build would compute, and nothing has to be invalidated.

Shapes: N passages of a part, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from distllm.fsio import atomic_write_bytes

PART = 8
"""Batches of a part: some seconds of one core with a small model."""
_STORED = np.dtype("<f4")
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Part:
    """Some batches of the corpus.

    Attributes:
        file: where its vectors are, or will be.
        batches: passages of each batch, by their number in the corpus.
        channels: of a vector.
    """

    file: Path
    batches: Sequence[Sequence[int]]
    channels: int

    @property
    def places(self) -> list[int]:
        """The numbers of its passages, batch after batch."""
        return list(chain.from_iterable(self.batches))

    def store(self, vectors_NC: NDArray[np.float32]) -> None:
        """Write the vectors of `places`; the file is whole or absent.

        Raises:
            StorageError: it cannot be written.
        """
        content = vectors_NC.astype(_STORED, copy=False).tobytes()
        atomic_write_bytes(self.file, xxhash.xxh3_128_digest(content) + content)

    def load(self) -> NDArray[np.float32] | None:
        """Return the vectors of `places`; None where they are absent or not what was written."""
        content = self.file.read_bytes() if self.file.is_file() else b""
        digest, stored = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if xxhash.xxh3_128_digest(stored) != digest:
            return None
        return np.frombuffer(stored, _STORED).reshape(len(self.places), self.channels)


def parts_of(
    batches: Sequence[Sequence[int]], texts: Sequence[str], directory: Path, inputs: str, channels: int
) -> list[Part]:
    """Return the parts of a corpus.

    Args:
        batches: of the whole corpus.
        texts: its passages.
        directory: where the files lie.
        inputs: names everything that the vectors depend on, except the texts.
        channels: of a vector.
    """
    parts = []
    for first in range(0, len(batches), PART):
        own = batches[first : first + PART]
        mark = xxhash.xxh3_128(inputs.encode())
        for batch in own:
            mark.update(f"\n{len(batch)}".encode())
            for place in batch:
                text = texts[place].encode()
                mark.update(f" {len(text)} ".encode() + text)
        parts.append(Part(directory / f"{mark.hexdigest()}.vectors", own, channels))
    return parts
