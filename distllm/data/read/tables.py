"""Parquet files, read a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distllm.config.schema_read import ReadConfig
from distllm.data.read.lines import documents_of
from distllm.data.read.part import Part
from distllm.data.read.streams import DamagedFile
from distllm.data.records import Document, Dropped
from distllm.errors import DataError

_BATCH_ROWS = 1024


def row_groups(file: Path) -> list[int]:
    """Return the bytes of each row group.

    Raises:
        DamagedFile: it is no Parquet file, or it is cut.
    """
    with _opened(file) as table:
        return [table.metadata.row_group(number).total_byte_size for number in range(table.num_row_groups)]


def read_parquet(file: Path, part: Part, read: ReadConfig) -> Iterator[Document | Dropped]:
    """Yield the rows of the part's row groups. Rules of refusal as for JSON lines, and ``too_large``.

    Raises:
        DataError: there is no column of the wanted name.
        DamagedFile: the file is cut or damaged.
    """
    import pyarrow as pa

    wanted = [key for key in (read.text_key, read.id_key, read.language_key) if key is not None]
    with _opened(file) as table:
        missing = [key for key in wanted if key not in table.schema_arrow.names]
        if missing:
            raise DataError(
                f"{part.name} has no column {', '.join(map(repr, missing))}",
                where=part.name,
                remedy=f"it has {', '.join(table.schema_arrow.names)}: set data.text_key, data.id_key",
            )
        groups = range(part.start, table.num_row_groups if part.stop is None else part.stop)
        first = sum(table.metadata.row_group(number).num_rows for number in range(part.start))
        try:
            yield from documents_of(_records(table, list(groups), wanted, first, part, read), read)
        except (pa.ArrowException, OSError) as error:
            raise DamagedFile(str(error)) from error


def _records(
    table: Any, groups: list[int], columns: list[str], first: int, part: Part, read: ReadConfig
) -> Iterator[tuple[str, dict[str, Any]] | Dropped]:
    row = first
    for batch in table.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups, columns=columns):
        for content in _rows(batch, read):
            name = f"{part.name}#{row}"
            yield _too_large(name, read) if content is None else (name, content)
            row += 1


def _rows(batch: Any, read: ReadConfig) -> Iterator[dict[str, Any] | None]:
    """Yield the columns of each row, None if the text is too long."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = batch.column(read.text_key)
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        yield from batch.to_pylist()  # whoever takes the text says what is wrong
        return
    sizes = pc.binary_length(texts)
    if (pc.max(sizes).as_py() or 0) <= read.max_document_bytes:
        yield from batch.to_pylist()
        return
    for number, size in enumerate(sizes.to_pylist()):
        fits = (size or 0) <= read.max_document_bytes
        yield batch.slice(number, 1).to_pylist()[0] if fits else None


def _too_large(name: str, read: ReadConfig) -> Dropped:
    return Dropped(name, "too_large", f"more than data.max_document_bytes={read.max_document_bytes}")


def _opened(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise DamagedFile(str(error)) from error
