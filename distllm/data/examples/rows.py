"""How the examples of a source become rows: whole, in order, as many as fit both widths.

Examples never cross shards, so a row belongs to one shard. The last column of a row's source is always
padding, so that the padding of its tokens has something to attend to.

Shapes: E examples of a shard, R rows of a shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distllm.data.examples.framing import Example, Framing, Measured, Record, Segment, forgotten
from distllm.data.examples.records import ShardRecords
from distllm.data.packing import TooLong
from distllm.data.shards import IndexedShard
from distllm.errors import DataError


class SourceExamples:
    """The rows of one split of one source.

    Args:
        directory: the dataset.
        name: the source.
        shards: its shards in the split.
        dtype: format of the ids.
        vocab_size: ids there are.
        framing: what the task makes of a document.
        seq_len: T, the tokens of a row.
        source_len: S, the source tokens of a row.
        too_long: what to do with an example that is longer than a row.
        eot_id: the id that fills forgotten documents.
        one_a_row: whether each example has its own row, for any task.

    Attributes:
        samples: how many rows each shard has.
        examples: examples of all rows.
        dropped: examples that were too long.
        tokens: ids in all rows, without padding and without sources.

    Raises:
        DataError: a document is empty, cannot be framed, or is too long and the policy is ``fail``.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        shards: Sequence[IndexedShard],
        *,
        dtype: np.dtype[Any],
        vocab_size: int,
        framing: Framing,
        seq_len: int,
        source_len: int,
        too_long: TooLong,
        eot_id: int,
        one_a_row: bool = False,
    ) -> None:
        self.name, self.framing = name, framing
        self._one_a_row = one_a_row or framing.one_a_row
        self._eot_id = eot_id
        self._seq_len, self._source_len, self._too_long = seq_len, source_len, too_long
        self._records = [ShardRecords(directory, shard, framing.fields, dtype) for shard in shards]
        self.dropped = 0
        self._measured, self._first = [], []
        for records in self._records:
            records.require_content(vocab_size)
            measured = self._fitting(records, framing.measure(records.sizes, records.read))
            self._measured.append(measured)
            self._first.append(self._pack(measured))
        self.samples = tuple(first_R.size - 1 for first_R in self._first)
        self.examples = sum(measured.row_E.size for measured in self._measured)
        self.tokens = sum(int(measured.tokens_E.sum()) for measured in self._measured)
        self._ends_K = np.cumsum(self.samples, dtype=np.int64)

    def row(self, sample: int) -> tuple[list[Example], bool]:
        """Return the examples of a row, cut to size, and whether a block of them is damaged.

        Raises:
            DataError: a document cannot be framed.
        """
        shard, row = self._place(sample)
        records, measured = self._records[shard], self._measured[shard]
        examples = list[Example]()
        for number in range(*self._first[shard][[row, row + 1]].tolist()):
            document = int(measured.row_E[number])
            if records.damaged(document):
                return [], True
            record = records.read(document)
            example = self._cut(self.framing.frame(record, int(measured.part_E[number])))
            if forgotten(record, self._eot_id):
                example = Example(tuple(s.silenced() for s in example.segments), example.sources)
            examples.append(example)
        return examples, False

    def check(self, sample: int) -> None:
        """Raise the error of the damaged block that a row needs.

        Raises:
            DataError: naming it.
        """
        shard, row = self._place(sample)
        for number in range(*self._first[shard][[row, row + 1]].tolist()):
            self._records[shard].read(int(self._measured[shard].row_E[number]))

    def documents(self) -> Iterator[Record]:
        """Yield the ids of every document that is neither damaged nor forgotten, in order."""
        for records in self._records:
            for row in range(next(iter(records.sizes.values())).size):
                if not records.damaged(row) and not forgotten(record := records.read(row), self._eot_id):
                    yield record

    def holding(self, shard: int, start: int, stop: int) -> list[int]:
        """Return the rows that hold one of the ids ``start`` to ``stop`` of the first field of a shard."""
        documents = self._records[shard].holding(start, stop)
        number_E = np.flatnonzero(np.isin(self._measured[shard].row_E, documents))
        row_E = np.searchsorted(self._first[shard], number_E, side="right") - 1
        before = int(self._ends_K[shard]) - self.samples[shard]
        rows: list[int] = (np.unique(row_E) + before).tolist()
        return rows

    def _place(self, sample: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends_K, sample, side="right"))
        return shard, sample - int(self._ends_K[shard]) + self.samples[shard]

    def _fitting(self, records: ShardRecords, measured: Measured) -> Measured:
        """Return the examples that fit into rows, after the policy was applied to the others."""
        limit, source_limit = self._seq_len, self._source_len - 1
        long_E = (measured.tokens_E > limit) | (measured.source_E > source_limit)
        if not long_E.any():
            return measured
        if self._too_long == "drop":
            self.dropped += int(long_E.sum())
            return measured.where(~long_E)
        if self._too_long == "cut":
            return Measured(
                measured.row_E,
                measured.part_E,
                np.minimum(measured.tokens_E, limit),
                np.minimum(measured.source_E, source_limit),
            )
        worst = int(np.argmax(np.maximum(measured.tokens_E - limit, measured.source_E - source_limit)))
        raise DataError(
            f"{int(long_E.sum())} of {long_E.size} examples of source {self.name} are too long; document "
            f"{records.name(int(measured.row_E[worst]))} needs {int(measured.tokens_E[worst])} tokens of "
            f"{limit} and {int(measured.source_E[worst])} source tokens of {source_limit}",
            where="data.seq_len, data.source_len",
            remedy="set larger ones, or data.too_long=drop, or data.too_long=cut",
        )

    def _cut(self, example: Example) -> Example:
        if self._too_long != "cut":
            return example
        share = self._seq_len // len(example.segments)
        whole = sum(segment.tokens_P.size for segment in example.segments) <= self._seq_len
        segments: Callable[[Segment], Segment] = (lambda s: s) if whole else (lambda s: s.cut(share))
        return Example(
            tuple(map(segments, example.segments)),
            tuple(ids[: self._source_len - 1] for ids in example.sources),
        )

    def _pack(self, measured: Measured) -> NDArray[np.int64]:
        """Return the first example of each row, and after the last row the number of examples."""
        count = measured.row_E.size
        if self._one_a_row:
            return np.arange(count + 1)
        tokens_E, source_E = np.cumsum(measured.tokens_E), np.cumsum(measured.source_E)
        firsts, at, tokens, source = [0], 0, 0, 0
        while at < count:
            stop = min(
                int(tokens_E.searchsorted(tokens + self._seq_len, side="right")),
                int(source_E.searchsorted(source + self._source_len - 1, side="right")),
            )
            at, tokens, source = stop, int(tokens_E[stop - 1]), int(source_E[stop - 1])
            firsts.append(at)
        return np.array(firsts, dtype=np.int64)
