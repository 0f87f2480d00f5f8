"""Documents between two stages: an Arrow file, compressed, read back in bounded batches.

Texts are kept as bytes, because documents may contain lone surrogates, which UTF-8 text cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from distllm.data.records import Document

SPOOL_FILE = "documents.arrow"
_BATCH_CHARS = 1 << 20
_ID, _LANGUAGE, _FIELD = "id", "language", "field:"


class SpoolWriter:
    """Writes the documents of one part; at most about a million characters wait in memory.

    Args:
        directory: gets the file ``documents.arrow``.
        fields: the fields that every document has.
    """

    def __init__(self, directory: Path, fields: Sequence[str]) -> None:
        import pyarrow as pa

        self._pa = pa
        self._fields = tuple(fields)
        columns = [_ID, _LANGUAGE, *(f"{_FIELD}{name}" for name in fields)]
        self._schema = pa.schema([(name, pa.large_binary()) for name in columns])
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._file = pa.ipc.new_file(str(directory / SPOOL_FILE), self._schema, options=options)
        self._batch: list[Document] = []
        self._chars = 0

    def add(self, document: Document) -> None:
        """Append one document."""
        self._batch.append(document)
        self._chars += sum(map(len, document.fields.values()))
        if self._chars >= _BATCH_CHARS:
            self._flush()

    def __enter__(self) -> SpoolWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._file.close()
        self._pa.default_memory_pool().release_unused()

    def _flush(self) -> None:
        if self._batch:
            columns: list[list[str]] = [
                [document.id for document in self._batch],
                [document.language for document in self._batch],
                *([document.fields[name] for document in self._batch] for name in self._fields),
            ]
            binary = self._pa.large_binary()
            arrays = [self._pa.array(list(map(_encode, column)), binary) for column in columns]
            self._file.write_batch(self._pa.record_batch(arrays, schema=self._schema))
        self._batch, self._chars = [], 0


def read_batches(directory: Path) -> Iterator[list[Document]]:
    """Yield the documents of ``directory`` in order, a batch at a time."""
    import pyarrow as pa

    with pa.memory_map(str(directory / SPOOL_FILE)) as source:
        file: Any = pa.ipc.open_file(source)
        names = [name.removeprefix(_FIELD) for name in file.schema.names[2:]]
        for number in range(file.num_record_batches):
            ids, languages, *columns = (
                [_decode(text) for text in column.to_pylist()] for column in file.get_batch(number).columns
            )
            yield [
                Document(id_, dict(zip(names, texts, strict=True)), language)
                for id_, language, *texts in zip(ids, languages, *columns, strict=True)
            ]


def read_documents(directory: Path) -> Iterator[Document]:
    """Yield the documents of ``directory`` in order."""
    for batch in read_batches(directory):
        yield from batch


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")
