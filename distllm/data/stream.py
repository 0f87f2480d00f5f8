"""From a prepared dataset to the batches of each step, as a pure function of the sample position.

A sample is a row of ``seq_len`` inputs of one source (see ``packing``). Inside a row each document,
or tail of one, is a *segment*. The samples of a split are numbered through its sources, in order.

Shapes: B rows of a micro-batch, T = seq_len positions, S steps, N samples of S steps, O places where
a segment opens.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distllm.config.steps import StepSizes, micro_batch_of
from distllm.data.ahead import ShardsAhead, ShardUse
from distllm.data.batch import IGNORE_INDEX, Batch, Split
from distllm.data.lengths import LengthWarmup
from distllm.data.manifest import MIRROR_FILE, Manifest
from distllm.data.order import SampleOrder, SourceSamples
from distllm.data.packing import Packing, TooLong
from distllm.data.records import TEXT
from distllm.data.rows import OnDamage, SourceRows
from distllm.data.shards import index_of
from distllm.errors import DataError

_LOCATED = 1024
"""Samples that are located at once: many cost hardly more than a few (measured)."""
_READ_IDS = 1 << 18
"""Ids that are read at once: fewer cost more calls for each (measured), more only memory."""


class PackedSplit:
    """One split of a dataset directory, memory-mapped, with random access to its samples.

    There is no loss where EOT follows EOT, as in a forgotten document.

    Args:
        directory: the dataset directory.
        split: ``"train"`` or ``"valid"``.
        seq_len: T, the inputs of a row.
        packing: how documents become rows.
        on_damage: what a damaged block does: an error, or rows of EOT without loss.
        too_long: what becomes of a document longer than the row it has for itself.
        corrupt: what hides part of the text; see ``distllm.data.corrupt``.

    Attributes:
        sources: how many samples each source has; a source without the split has none.
        num_tokens: ids of the split.
        bytes_per_token: UTF-8 bytes of text an id stands for, on average.
        num_samples: samples of the split.
        is_mirror: shards are fetched when they are first read.

    Raises:
        DataError: the directory is no dataset, a shard is missing or of the wrong size, a source has
            other fields than text, or the split is shorter than one sample.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        seq_len: int,
        *,
        packing: Packing = "window",
        on_damage: OnDamage = "fail",
        too_long: TooLong = "fail",
        corrupt: Callable[[Batch], Batch] | None = None,
    ) -> None:
        directory = Path(directory)
        self.manifest = Manifest.load(directory)
        self.manifest.check_sizes(directory, split)
        self.is_mirror = (directory / MIRROR_FILE).is_file()
        self.seq_len = seq_len
        record = self.manifest.splits[split]
        self.num_tokens = record.tokens
        self.bytes_per_token = record.text_bytes / max(1, record.tokens)
        _check_fields(directory, self.manifest, split)
        index = index_of(directory, self.manifest)
        self._rows = [
            SourceRows(
                directory,
                name,
                shards.get(split, []),
                dtype=np.dtype(self.manifest.token_dtype).newbyteorder("<"),
                eot_id=self.manifest.eot_id,
                seq_len=seq_len,
                packing=packing,
                on_damage=on_damage,
                too_long=too_long,
            )
            for name, shards in ((name, index[name]) for name in self.manifest.sources)
        ]
        self._pads = packing != "window"
        self._corrupt = corrupt
        self.sources = tuple(SourceSamples(rows.name, rows.layout.samples) for rows in self._rows)
        self._ends_S = np.cumsum([source.total for source in self.sources])
        self.num_samples = int(self._ends_S[-1])
        if self.num_samples == 0:
            empty = DataError(
                f"split {split!r} of {directory} has {self.num_tokens} tokens, "
                f"fewer than the {seq_len + 1} of one sample",
                where=str(directory),
                remedy="prepare more text, set a smaller data.seq_len, or hold out more: data.valid_fraction",
            )
            empty.everywhere = True  # it follows from the manifest
            raise empty

    @property
    def padding(self) -> float:
        """The share of all inputs that is padding; 0 for windows."""
        if not self._pads:
            return 0.0
        return 1 - sum(rows.layout.tokens for rows in self._rows) / (self.num_samples * self.seq_len)

    def numbers(self, source_N: NDArray[np.int64], sample_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers in the split of samples that are numbered within their sources."""
        first_S = self._ends_S - np.array([source.total for source in self.sources])
        number_N: NDArray[np.int64] = first_S[source_N] + sample_N
        return number_N

    def samples_with(self, source: int, shard: int, start: int, stop: int) -> list[int]:
        """Return the samples of a source that have one of the ids ``start`` to ``stop`` of a shard.

        ``start`` is not the first id of the shard, which is the EOT of its first document.
        """
        return self._rows[source].layout.holding(shard, start, stop)

    def first_uses(self, samples_N: NDArray[np.int64]) -> list[ShardUse]:
        """Return each shard that samples lie in, with the place in ``samples_N`` of its first use."""
        uses = list[ShardUse]()
        source_N = np.searchsorted(self._ends_S, samples_N, side="right")
        for source in np.unique(source_N).tolist():
            place_C = np.flatnonzero(source_N == source)
            sample_C = samples_N[place_C] - (self._ends_S[source] - self.sources[source].total)
            uses += [
                (int(place_C[row]), source, shard) for row, shard in self._rows[source].shards_of(sample_C)
            ]
        return uses

    def fetch(self, source: int, shard: int) -> None:
        """Make a shard of a mirrored dataset a local file; see ``distllm.data.mirror``."""
        self._rows[source].fetch(shard)

    def batch(
        self,
        samples_B: NDArray[np.int64],
        sample_ids_B: NDArray[np.int64],
    ) -> Batch:
        """Return the samples ``samples_B`` as one batch with the row ids ``sample_ids_B``.

        Raises:
            IndexError, DataError: as ``read``.
        """
        return self.read(samples_B, sample_ids_B)[0]

    def read(
        self,
        samples_B: NDArray[np.int64],
        sample_ids_B: NDArray[np.int64],
        longest_B: NDArray[np.int64] | None = None,
    ) -> tuple[Batch, int]:
        """Return some samples as one batch, and how many of them have no loss because of damage.

        Args:
            samples_B: numbers in the split.
            sample_ids_B: names of the rows.
            longest_B: cut each row into segments of at most this many inputs.

        Raises:
            IndexError: a sample is not in ``[0, num_samples)``.
            DataError: a block is damaged, and the policy is ``fail``.
        """
        if samples_B.min() < 0 or samples_B.max() >= self.num_samples:
            raise IndexError(f"samples {samples_B.min()} to {samples_B.max()} of {self.num_samples}")
        shape = (samples_B.size, self.seq_len)
        tokens_BT = np.empty(shape, dtype=np.int32)
        targets_BT = np.empty(shape, dtype=np.int32)
        if self._pads:
            tokens_BT.fill(self.manifest.eot_id)
            targets_BT.fill(IGNORE_INDEX)
        opens, damaged = list[NDArray[np.int64]](), list[int]()
        source_B = np.searchsorted(self._ends_S, samples_B, side="right")
        for source in np.unique(source_B).tolist():
            row_C = np.flatnonzero(source_B == source)
            sample_C = samples_B[row_C] - (self._ends_S[source] - self.sources[source].total)
            more, lost = self._rows[source].fill(sample_C, row_C, tokens_BT, targets_BT)
            opens += more
            damaged += lost
        lost_rows = sorted(set(damaged))
        tokens_BT[lost_rows] = self.manifest.eot_id
        targets_BT[lost_rows] = IGNORE_INDEX
        empty_BT = tokens_BT == self.manifest.eot_id
        empty_BT &= targets_BT == self.manifest.eot_id
        targets_BT[empty_BT] = IGNORE_INDEX
        positions_BT, segments_BT = _segments([*opens, *_cuts(longest_B, self.seq_len)], shape)
        batch = Batch(tokens_BT, targets_BT, positions_BT, segments_BT, sample_ids_B)
        return self._corrupt(batch) if self._corrupt else batch, len(lost_rows)


class StepStream:
    """The global batches of a run, seen by one rank.

    The sample at global position ``g`` depends on the split, the order and ``g`` only. Of the global
    batch that starts at ``g``, rank ``r`` takes positions ``g + r``, ``g + r + world_size`` …, in
    micro-batches. While a step is computed, one thread reads the batch that follows it.

    Args:
        split: the samples.
        order: which of them is at each position.
        sequences_per_step: samples of a global batch; a multiple of world_size * micro_batch_size.
        micro_batch_size: rows of a batch, at most.
        rank: this data-parallel rank.
        world_size: number of data-parallel ranks.
        lengths: the sequence-length warm-up, if there is one.
        max_damage: largest share of the samples read so far that may be damaged, plus one sample.
        shards_ahead: shards of a mirrored dataset that are fetched before they are needed.
        sizes: the samples of each step where they are not all ``sequences_per_step``.

    Attributes:
        order: see above.
        damaged: samples of this rank, of the steps taken here, that carry no loss because a block of
            their shard is damaged.
    """

    def __init__(
        self,
        split: Split,
        order: SampleOrder,
        *,
        sequences_per_step: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        lengths: LengthWarmup | None = None,
        max_damage: float = 0.0,
        shards_ahead: int = 0,
        sizes: StepSizes | None = None,
    ) -> None:
        if sequences_per_step % (world_size * micro_batch_size) or not 0 <= rank < world_size:
            raise ValueError(
                f"{sequences_per_step} sequences do not split into micro-batches of {micro_batch_size} "
                f"on rank {rank} of {world_size}"
            )
        self.order, self.damaged = order, 0
        self._split = split
        self._lengths, self._max_damage, self._taken = lengths, max_damage, 0
        self._sizes = sizes or StepSizes.constant(sequences_per_step)
        self._rank, self._world_size, self._micro_batch_size = rank, world_size, micro_batch_size
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="distllm-prefetch")
        # not many epochs of a small split, each of which is a permutation of its own
        self._numbers: dict[int, NDArray[np.int64]] = {}
        self._located = 0  # sequences of the steps in it
        # Other splits have fetched all of their shards when they were opened.
        self._remote = split if isinstance(split, PackedSplit) and split.is_mirror and shards_ahead else None
        self._shards = ShardsAhead(self._remote.fetch, shards_ahead) if self._remote else None
        self._ahead: tuple[tuple[int, int], Future[tuple[list[Batch], int]]] | None = None

    def step(self, first_sample: int, number: int = 0) -> list[Batch]:
        """Return this rank's micro-batches of the global batch that starts at ``first_sample``.

        ``number`` is the number of earlier steps, if their sizes differ. An error of the reading thread
        is raised here.

        Raises:
            DataError: a block is damaged and the split's policy is ``fail``, or more samples are
                damaged than ``max_damage`` allows.
        """
        ahead, self._ahead = self._ahead, None  # forgotten if it fails, so that a retry reads again
        size, next_size = self._sizes.at(number), self._sizes.at(number + 1)
        if ahead is not None and ahead[0] == (first_sample, size):
            batches, damaged = ahead[1].result()
        else:
            batches, damaged = self._reader.submit(self._read, first_sample, size).result()
        following = first_sample + size, next_size
        self._ahead = (following, self._reader.submit(self._read, *following))
        self._count_damage(damaged, size)
        return batches

    def close(self) -> None:
        """Stop reading ahead and join the thread; a later ``step`` is an error."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        if self._shards is not None:
            self._shards.close()

    def _read(self, first_sample: int, size: int) -> tuple[list[Batch], int]:
        offset_B = np.arange(self._rank, size, self._world_size, dtype=np.int64)
        position_B = first_sample + offset_B
        if first_sample not in self._numbers or self._located != size:
            self._numbers, self._located = self._locate_from(first_sample, size, offset_B), size
        number_B = self._numbers[first_sample]
        if self._shards is not None:
            self._shards.advance(first_sample)
        longest_B = self._lengths.length_at(position_B) if self._lengths else None
        rows = micro_batch_of(position_B.size, self._micro_batch_size)
        together = rows * max(1, _READ_IDS // (self._split.seq_len * rows))
        batches, damaged = list[Batch](), 0
        for start in range(0, position_B.size, together):
            part = slice(start, start + together)
            longest = None if longest_B is None else longest_B[part]
            whole, lost = self._split.read(number_B[part], position_B[part], longest)
            damaged += lost
            for row in range(0, whole.sample_ids_B.size, rows):
                batches.append(whole.rows(row, row + rows))
        return batches, damaged

    def _locate_from(
        self, first_sample: int, size: int, offset_B: NDArray[np.int64]
    ) -> dict[int, NDArray[np.int64]]:
        """Return this rank's samples of this and some later steps, by the first position of each."""
        steps = max(1, min(_LOCATED, self._split.num_samples) // offset_B.size)
        firsts = first_sample + np.arange(steps) * size
        source_N, _, sample_N = self.order.locate((firsts[:, None] + offset_B).ravel())
        number_SB = self._split.numbers(source_N, sample_N).reshape(firsts.size, -1)
        if self._shards is not None and self._remote is not None:
            uses, wide = self._remote.first_uses(number_SB.ravel()), number_SB.shape[1]
            self._shards.plan([(int(firsts[at // wide]), source, shard) for at, source, shard in uses])
        return dict(zip(firsts.tolist(), number_SB, strict=True))

    def _count_damage(self, damaged: int, size: int) -> None:
        self._taken += size // self._world_size
        self.damaged += damaged
        allowed = self._max_damage * self._taken + 1
        if self.damaged > allowed:
            raise DataError(
                f"{self.damaged} of the {self._taken} samples read so far lie in damaged blocks, "
                f"more than data.max_damage={self._max_damage} of them and one",
                where="data.max_damage",
                remedy="restore the shards that distllm data verify names, or raise data.max_damage",
            )


def _check_fields(directory: Path, manifest: Manifest, split: str) -> None:
    """Refuse sources whose documents are not plain text, because they have no stream of ids to cut."""
    for name, splits in manifest.sources.items():
        fields = manifest.fields[name]
        if split in splits and tuple(fields) != (TEXT,):
            raise DataError(
                f"source {name} of {directory} has documents of the fields {', '.join(fields)}, not text",
                where=str(directory),
                remedy="train on a dataset whose sources are plain text, or choose the task that such "
                "documents are for: task=seq2seq, instruct, extractive_qa, contrastive or dpo",
            )


def _cuts(longest_B: NDArray[np.int64] | None, seq_len: int) -> list[NDArray[np.int64]]:
    """Return the places, in parts, where rows are cut into segments of at most ``longest_B`` inputs."""
    if longest_B is None:
        return []
    rows = enumerate(longest_B.tolist())
    return [row * seq_len + np.arange(0, seq_len, longest) for row, longest in rows if longest < seq_len]


def _segments(
    opens: list[NDArray[np.int64]], shape: tuple[int, int]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return positions_BT and segments_BT of segments that open at these places of a flat batch.

    Every row opens one at its first column.
    """
    rows, seq_len = shape
    marked = np.zeros(rows * seq_len, dtype=bool)  # beats sorting: places come in any order, some twice
    marked[np.concatenate(opens)] = True
    open_O = np.flatnonzero(marked)
    length_O = np.diff(open_O, append=rows * seq_len)
    first_B = open_O.searchsorted(np.arange(rows) * seq_len)
    segment_O = np.arange(open_O.size) - first_B[open_O // seq_len]
    positions = np.repeat(open_O.astype(np.int32), length_O)
    np.subtract(_places(rows * seq_len), positions, out=positions)
    return positions.reshape(shape), np.repeat(segment_O.astype(np.int32), length_O).reshape(shape)


@lru_cache(maxsize=2)
def _places(count: int) -> NDArray[np.int32]:
    return np.arange(count, dtype=np.int32)
