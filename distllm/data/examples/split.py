"""One split of a dataset whose documents have several fields, with random access to its rows.

Shapes: B rows of a batch, T = seq_len positions, S = source_len positions, N samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distllm.config.schema import Config
from distllm.data.batch import IGNORE_INDEX, Batch, Source
from distllm.data.examples.framing import Example, Framing, Record
from distllm.data.examples.registry import framing_of
from distllm.data.examples.rows import SourceExamples
from distllm.data.manifest import Manifest
from distllm.data.order import SourceSamples
from distllm.data.shards import index_of
from distllm.data.tokenizer import Tokenizer
from distllm.errors import DataError


class ExampleSplit:
    """Rows of whole examples, for the task of a configuration; see `PackedSplit` for plain text.

    The examples of a row depend only on the dataset and the configuration. Within a row each segment
    of an example is a segment of the batch, and padding is the last one.

    Args:
        directory: the dataset directory.
        split: ``"train"`` or ``"valid"``.
        config: its task, lengths and policies.
        begin: what texts begin with; see `framing_of`.

    Attributes:
        sources: how many samples each source has; a source without the split has none.
        num_tokens: ids of the split, in all fields.
        bytes_per_token: UTF-8 bytes of text an id stands for, on average.
        num_samples: samples of the split.
        num_examples: examples in all samples.
        dropped: examples that were too long for a row.

    Raises:
        DataError: the dataset is damaged, its documents do not fit the task, or one is too long.
    """

    def __init__(self, directory: Path, split: str, config: Config, begin: int | None = None) -> None:
        directory = Path(directory)
        self.manifest = Manifest.load(directory)
        self.manifest.check_sizes(directory, split)
        self.seq_len = config.data.seq_len
        self._source_len = config.data.source_len or config.data.seq_len
        self._on_damage = config.data.on_damage
        record = self.manifest.splits[split]
        self.num_tokens = record.tokens
        self.bytes_per_token = record.text_bytes / max(1, record.tokens)
        tokenizer, index = Tokenizer.load(directory), index_of(directory, self.manifest)
        self._rows = [
            SourceExamples(
                directory,
                name,
                index[name].get(split, []),
                dtype=np.dtype(self.manifest.token_dtype).newbyteorder("<"),
                vocab_size=self.manifest.vocab_size,
                framing=framing_of(config, name, self.manifest.fields[name], tokenizer, begin),
                seq_len=self.seq_len,
                source_len=self._source_len,
                too_long=config.data.too_long,
                eot_id=self.manifest.eot_id,
                one_a_row=config.data.packing == "single",
            )
            for name in self.manifest.sources
        ]
        self._has_source = any(rows.framing.has_source for rows in self._rows)
        self.sources = tuple(SourceSamples(rows.name, rows.samples) for rows in self._rows)
        self._ends_S = np.cumsum([source.total for source in self.sources])
        self.num_samples = int(self._ends_S[-1])
        self.num_examples = sum(rows.examples for rows in self._rows)
        self.dropped = sum(rows.dropped for rows in self._rows)
        if self.num_samples == 0:
            raise DataError(
                f"split {split!r} of {directory} has no example that fits a row",
                where=str(directory),
                remedy="prepare more documents, or set a larger data.seq_len",
            )

    @property
    def padding(self) -> float:
        """The share of all positions that is padding."""
        return 1 - sum(rows.tokens for rows in self._rows) / (self.num_samples * self.seq_len)

    def numbers(self, source_N: NDArray[np.int64], sample_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers in the split of samples that are numbered within their sources."""
        first_S = self._ends_S - np.array([source.total for source in self.sources])
        number_N: NDArray[np.int64] = first_S[source_N] + sample_N
        return number_N

    def samples_with(self, source: int, shard: int, start: int, stop: int) -> list[int]:
        """Return the samples of a source that have one of the ids ``start`` to ``stop`` of a shard."""
        return self._rows[source].holding(shard, start, stop)

    def batch(self, samples_B: NDArray[np.int64], sample_ids_B: NDArray[np.int64]) -> Batch:
        """Return the samples ``samples_B`` as one batch with the row ids ``sample_ids_B``."""
        return self.read(samples_B, sample_ids_B)[0]

    def read(
        self,
        samples_B: NDArray[np.int64],
        sample_ids_B: NDArray[np.int64],
        longest_B: NDArray[np.int64] | None = None,
    ) -> tuple[Batch, int]:
        """Return some samples as one batch, and how many of them have no loss because of damage.

        ``longest_B`` is for rows of plain text, which may be cut anywhere; examples stay whole.

        Raises:
            IndexError: a sample is not in ``[0, num_samples)``.
            DataError: a block is damaged, and the policy is ``fail``.
        """
        if samples_B.min() < 0 or samples_B.max() >= self.num_samples:
            raise IndexError(f"samples {samples_B.min()} to {samples_B.max()} of {self.num_samples}")
        rows, damaged = list[list[Example]](), 0
        source_B = np.searchsorted(self._ends_S, samples_B, side="right")
        for number, source in zip(samples_B.tolist(), source_B.tolist(), strict=True):
            held = self._rows[source]
            sample = number - int(self._ends_S[source]) + self.sources[source].total
            examples, lost = held.row(sample)
            if lost and self._on_damage == "fail":
                held.check(sample)
            rows.append(examples)
            damaged += lost
        return self._batch(rows, sample_ids_B), damaged

    def documents(self) -> Iterator[tuple[Framing, Record]]:
        """Yield every document that can be read, with the framing of its source."""
        for rows in self._rows:
            for record in rows.documents():
                yield rows.framing, record

    def _batch(self, rows: Sequence[Sequence[Example]], sample_ids_B: NDArray[np.int64]) -> Batch:
        eot = self.manifest.eot_id
        tokens = [[segment.tokens_P for example in row for segment in example.segments] for row in rows]
        targets = [[segment.targets_P for example in row for segment in example.segments] for row in rows]
        sources = [[ids for example in row for ids in example.sources] for row in rows]
        tokens_BT, positions_BT, segments_BT = laid_out(tokens, self.seq_len, eot)
        source = None
        if self._has_source:
            source = Source(*laid_out(sources, self._source_len, eot))
        return Batch(
            tokens_BT,
            laid_out(targets, self.seq_len, IGNORE_INDEX)[0],
            positions_BT,
            segments_BT,
            sample_ids_B,
            source,
        )


def laid_out(
    rows: Sequence[Sequence[NDArray[np.int64]]], width: int, fill: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Return values, positions and segments of rows of ``width``; padding is the last segment."""
    values = np.full((len(rows), width), fill, dtype=np.int32)
    positions, segments = np.zeros_like(values), np.zeros_like(values)
    for row, parts in enumerate(rows):
        at = 0
        for number, part in enumerate(parts):
            stop = at + part.size
            values[row, at:stop] = part
            positions[row, at:stop] = np.arange(part.size)
            segments[row, at:stop] = number
            at = stop
        positions[row, at:] = np.arange(width - at)
        segments[row, at:] = len(parts)
    return values, positions, segments
