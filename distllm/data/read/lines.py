"""Formats with one record per line: JSON lines and delimited text."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from distllm.config.schema_read import ReadConfig
from distllm.data.read.part import Part
from distllm.data.read.streams import decode, open_bytes, read_lines
from distllm.data.records import Document, Dropped, excerpt

Records = Iterator[tuple[str, dict[str, Any]] | Dropped]
_BOM = b"\xef\xbb\xbf"
_PEEK_BYTES = 4096


def json_records(file: Path, part: Part, read: ReadConfig) -> Records:
    """Yield the name and content of the JSON object on every line.

    Rules of refusal: ``line_too_long``, ``not_text``, ``undecodable``, ``broken_json``, ``not_an_object``.
    """
    with open_bytes(file) as stream:
        for offset, line in read_lines(stream, read.max_document_bytes, part.start, part.stop):
            if offset == 0 and line is not None and b"\0" in line[:_PEEK_BYTES]:
                yield Dropped(part.name, "not_text", "NUL byte in the first line")
                return
            name = f"{part.name}@{offset}"
            if line is None:
                yield _too_long(name, read)
            elif record := line.removeprefix(_BOM).strip():
                yield _json_record(name, record, read)


def _json_record(name: str, line: bytes, read: ReadConfig) -> tuple[str, dict[str, Any]] | Dropped:
    text = decode(line, name, read)
    if isinstance(text, Dropped):
        return text
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Dropped(name, "broken_json", str(error), excerpt(text))
    if not isinstance(record, dict):
        return Dropped(name, "not_an_object", f"a JSON {type(record).__name__}, expected an object")
    return name, record


def delimited_records(file: Path, part: Part, read: ReadConfig, columns: tuple[str, ...] = ()) -> Records:
    """Yield the name and columns of every row of a CSV or TSV file.

    The first row names the columns, unless ``columns`` does; then a first row that repeats them is skipped.
    Rules of refusal: ``undecodable``, ``not_text``, ``wrong_columns``, ``record_too_long``.
    """
    delimiter = read.delimiter or ("\t" if ".tsv" in file.name else ",")
    csv.field_size_limit(read.max_document_bytes)
    with open_bytes(file) as stream:
        if b"\0" in cast(io.BufferedReader, stream).peek(_PEEK_BYTES)[:_PEEK_BYTES]:
            yield Dropped(part.name, "not_text", f"NUL byte in the first {_PEEK_BYTES} bytes")
            return
        lines = _Lines(
            io.TextIOWrapper(stream, read.encoding, errors="surrogateescape", newline=""),
            read.max_document_bytes,
        )
        if delimiter == "\t":
            rows = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        else:
            rows = csv.reader(lines, delimiter=delimiter)
        yield from _rows(rows, part, read, columns)


def _rows(rows: Iterator[list[str]], part: Part, read: ReadConfig, columns: tuple[str, ...]) -> Records:
    for number in itertools.count(1):
        name = f"{part.name}#{number}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except (csv.Error, _TooLong) as error:
            yield Dropped(name, "record_too_long", str(error))
            if not columns:
                return  # nothing names the columns of what follows
            continue
        if number == 1 and row:
            row[0] = row[0].removeprefix("\ufeff")
        if number == 1 and not columns:
            columns = tuple(row)
        elif not row or (number == 1 and tuple(cell.strip().lower() for cell in row) == columns):
            continue
        elif len(row) < len(columns):
            yield Dropped(
                name, "wrong_columns", f"{len(row)} columns, expected {len(columns)}", excerpt(str(row))
            )
        elif any("\udc80" <= letter <= "\udcff" for cell in row for letter in cell):
            yield Dropped(name, "undecodable", f"not {read.encoding}, data.encoding", excerpt(ascii(row)))
        else:
            yield name, dict(zip(columns, row, strict=False))


class _TooLong(Exception):
    """A line has more characters than may be held in memory."""


class _Lines:
    """The lines of ``text``; one with more than ``limit`` characters raises `_TooLong` and is skipped."""

    def __init__(self, text: io.TextIOWrapper, limit: int) -> None:
        self._text, self._limit = text, limit

    def __iter__(self) -> Iterator[str]:
        """Return itself."""
        return self

    def __next__(self) -> str:
        """Return the next line.

        Raises:
            _TooLong: it is longer than ``limit``.
        """
        line = piece = self._text.readline(self._limit + 1)
        if not line:
            raise StopIteration
        if len(line) <= self._limit:
            return line
        while piece and not piece.endswith(("\n", "\r")):
            piece = self._text.readline(self._limit)
        raise _TooLong(f"a line of more than data.max_document_bytes={self._limit}")


def _too_long(name: str, read: ReadConfig) -> Dropped:
    return Dropped(name, "line_too_long", f"more than data.max_document_bytes={read.max_document_bytes}")


def documents_of(records: Records, read: ReadConfig) -> Iterator[Document | Dropped]:
    """Turn records into plain documents by ``text_key``, ``id_key`` and ``language_key``.

    Rules of refusal: ``no_text_key``, ``text_not_string``, ``no_id_key``.
    """
    for record in records:
        if isinstance(record, Dropped):
            yield record
            continue
        name, content = record
        text = text_of(name, content, read.text_key)
        yield text if isinstance(text, Dropped) else named(name, {"text": text}, content, read)


def text_of(name: str, content: dict[str, Any], key: str) -> str | Dropped:
    """Return the string at ``key``, or why there is none."""
    if key not in content:
        keys = ", ".join(map(repr, content)) or "nothing"
        return Dropped(name, "no_text_key", f"no key {key!r}; it has {keys}")
    text = content[key]
    if not isinstance(text, str):
        return Dropped(name, "text_not_string", f"{key!r} is a {type(text).__name__}")
    return text


def named(name: str, fields: dict[str, str], content: dict[str, Any], read: ReadConfig) -> Document | Dropped:
    """Return the document of ``fields`` under the record's own id and language, if it has them."""
    if read.id_key is not None:
        if not isinstance(id_ := content.get(read.id_key), (str, int)) or id_ == "":
            return Dropped(
                name, "no_id_key", f"no id at {read.id_key!r}; it has {', '.join(map(repr, content))}"
            )
        name = str(id_)
    language = content.get(read.language_key) if read.language_key else None
    return Document(name, fields, language if isinstance(language, str) else read.language)
