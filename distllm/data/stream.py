"""From a prepared dataset to the batches of each step, as a pure function of the sample position.

Sample ``k`` of a split is the window of ``seq_len + 1`` ids at ``k * seq_len`` of its token stream;
the last id of a window is the first of the next, so every id but the first is a target once.
Inside a window each document, or tail of one, is a *segment*.

Shapes: B rows of a micro-batch, T = seq_len positions, S = T + 1 ids of a window.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distllm.data.manifest import Manifest
from distllm.data.order import locate
from distllm.data.shards import map_shard, read_index
from distllm.errors import DataError

IGNORE_INDEX = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch of one rank.

    Attributes:
        tokens_BT: inputs.
        targets_BT: the id that follows each input; ``IGNORE_INDEX`` where there is no loss.
        positions_BT: place in the segment; restarts at 0 with each.
        segments_BT: 0, 1, 2 … along a row, never decreasing.
        sample_ids_B: position of each row in the run's global order.
    """

    tokens_BT: NDArray[np.int32]
    targets_BT: NDArray[np.int32]
    positions_BT: NDArray[np.int32]
    segments_BT: NDArray[np.int32]
    sample_ids_B: NDArray[np.int64]


class PackedSplit:
    """One split of a dataset directory, memory-mapped, with random access to its windows.

    Args:
        directory: the dataset directory.
        split: ``"train"`` or ``"valid"``.
        seq_len: T, the inputs of a window.

    Raises:
        DataError: the directory is no dataset, a shard is missing or of the wrong size, or the split
            is shorter than one window.
    """

    def __init__(self, directory: Path, split: str, seq_len: int) -> None:
        directory = Path(directory)
        self.manifest = Manifest.load(directory)
        self.manifest.check_sizes(directory, split)
        self.seq_len = seq_len
        self.num_tokens = self.manifest.splits[split].tokens
        self.num_samples = max(0, self.num_tokens - 1) // seq_len
        if self.num_samples == 0:
            raise DataError(
                f"split {split!r} of {directory} has {self.num_tokens} tokens, "
                f"fewer than the {seq_len + 1} of one sample",
                where=str(directory),
                remedy="prepare more text, or set a smaller data.seq_len",
            )
        dtype = np.dtype(self.manifest.token_dtype).newbyteorder("<")
        index = [shard for source in self.manifest.sources for shard in read_index(directory, source, split)]
        self._shards = [map_shard(directory, shard, dtype) for shard in index]
        self._starts = np.cumsum([0, *(shard.record.tokens for shard in index)])

    def window(self, k: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Return the ids_S, positions_S and segments_S of sample ``k``.

        Raises:
            IndexError: ``k`` is not in ``[0, num_samples)``.
        """
        if not 0 <= k < self.num_samples:
            raise IndexError(f"sample {k} of {self.num_samples}")
        length = self.seq_len + 1
        ids_S = np.empty(length, dtype=np.int32)
        opens_S = np.zeros(length, dtype=bool)
        shard = int(np.searchsorted(self._starts, k * self.seq_len, side="right")) - 1
        offset, filled = k * self.seq_len - int(self._starts[shard]), 0
        while filled < length:
            tokens_M, ends_D = self._shards[shard]
            stop = min(tokens_M.size, offset + length - filled)
            ids_S[filled : filled + stop - offset] = tokens_M[offset:stop]
            # a document opens at the shard's first id and at each end but the last
            first, last = np.searchsorted(ends_D, np.array([offset, stop], dtype=ends_D.dtype))
            opens_S[filled + ends_D[first:last].astype(np.int64) - offset] = True
            opens_S[filled] |= offset == 0
            filled += stop - offset
            shard, offset = shard + 1, 0
        opens_S[0] = False
        place_S = np.arange(length, dtype=np.int32)
        positions_S = place_S - np.maximum.accumulate(np.where(opens_S, place_S, 0))
        return ids_S, positions_S, np.cumsum(opens_S, dtype=np.int32)

    def batch(self, samples_B: NDArray[np.int64], sample_ids_B: NDArray[np.int64]) -> Batch:
        """Return the windows ``samples_B`` as one batch whose rows are called ``sample_ids_B``."""
        windows = [self.window(int(k)) for k in samples_B]
        ids_BS = np.stack([ids_S for ids_S, _, _ in windows])
        return Batch(
            tokens_BT=np.ascontiguousarray(ids_BS[:, :-1]),
            targets_BT=np.ascontiguousarray(ids_BS[:, 1:]),
            positions_BT=np.stack([positions_S[:-1] for _, positions_S, _ in windows]),
            segments_BT=np.stack([segments_S[:-1] for _, _, segments_S in windows]),
            sample_ids_B=sample_ids_B,
        )


class StepStream:
    """The global batches of a run, seen by one rank.

    The sample at global position ``g`` depends on (dataset, seq_len, seed, g) only. Of the global
    batch that starts at ``g``, rank ``r`` takes positions ``g + r``, ``g + r + world_size`` …, in
    micro-batches. While a step is computed, one thread reads the batch that follows it.

    Args:
        split: the samples.
        seed: root of the order.
        sequences_per_step: samples of a global batch; a multiple of world_size * micro_batch_size.
        micro_batch_size: rows of a batch.
        rank: this data-parallel rank.
        world_size: number of data-parallel ranks.
    """

    def __init__(
        self,
        split: PackedSplit,
        *,
        seed: int,
        sequences_per_step: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
    ) -> None:
        if sequences_per_step % (world_size * micro_batch_size) or not 0 <= rank < world_size:
            raise ValueError(
                f"{sequences_per_step} sequences do not split into micro-batches of {micro_batch_size} "
                f"on rank {rank} of {world_size}"
            )
        self._split = split
        self._seed = seed
        self._sequences_per_step = sequences_per_step
        self._micro_batch_size = micro_batch_size
        self._offset_B = np.arange(rank, sequences_per_step, world_size, dtype=np.int64)
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="distllm-prefetch")
        self._ahead: tuple[int, Future[list[Batch]]] | None = None

    def step(self, first_sample: int) -> list[Batch]:
        """Return this rank's micro-batches of the global batch that starts at ``first_sample``.

        An error of the reading thread is raised here.
        """
        ahead, self._ahead = self._ahead, None  # forgotten if it fails, so that a retry reads again
        if ahead is not None and ahead[0] == first_sample:
            batches = ahead[1].result()
        else:
            batches = self._reader.submit(self._read, first_sample).result()
        following = first_sample + self._sequences_per_step
        self._ahead = (following, self._reader.submit(self._read, following))
        return batches

    def close(self) -> None:
        """Stop reading ahead and join the thread; a later ``step`` is an error."""
        self._reader.shutdown(wait=True, cancel_futures=True)

    def _read(self, first_sample: int) -> list[Batch]:
        position_B = first_sample + self._offset_B
        _, sample_B = locate(position_B, self._split.num_samples, self._seed)
        rows = self._micro_batch_size
        return [
            self._split.batch(sample_B[row : row + rows], position_B[row : row + rows])
            for row in range(0, position_B.size, rows)
        ]
