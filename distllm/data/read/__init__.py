"""Raw input of every kind as documents.

A reader yields a ``Document`` for each text it can read and a ``Dropped`` for each it cannot, in an
order that depends only on the input. An error that makes the whole source unusable is a ``DataError``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from distllm.config.schema_read import ReadConfig
from distllm.data.read import dialogue, lines, pairs, plain, pydocs, tables, web
from distllm.data.read.files import find_files
from distllm.data.read.part import Part, printable
from distllm.data.read.streams import COMPRESSED_SUFFIXES, DamagedFile, file_is_compressed, local_copy
from distllm.data.records import TEXT, Document, Dropped
from distllm.data.remote import fingerprint, is_remote
from distllm.errors import DataError
from distllm.fsio import digest_bytes, digest_file
from distllm.registry import Registry

__all__ = ["FIELDS", "READERS", "Part", "find_parts", "read_part"]

Reader = Callable[[Path, Part, ReadConfig], Iterator[Document | Dropped]]
_PART_BYTES = 64 * 2**20
_NO_FILE = Path("/nonexistent")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of source.

    Attributes:
        read: yields the documents of a part.
        fields: the fields of its documents.
        suffixes: endings of file names that are read in a directory, also with a suffix of compression.
        by_lines: whether a big file can be cut anywhere between lines.
    """

    read: Reader
    fields: tuple[str, ...] = (TEXT,)
    suffixes: tuple[str, ...] = ("",)
    by_lines: bool = False


def _read_jsonl(file: Path, part: Part, read: ReadConfig) -> Iterator[Document | Dropped]:
    return lines.documents_of(lines.json_records(file, part, read), read)


def _read_csv(file: Path, part: Part, read: ReadConfig) -> Iterator[Document | Dropped]:
    return lines.documents_of(lines.delimited_records(file, part, read), read)


_JSON_LINES = (".jsonl", ".ndjson")
READERS: Registry[Kind] = Registry(
    "data source",
    "data.source",
    {
        "pydocs": Kind(pydocs.read_pydocs),
        "text": Kind(plain.read_text),
        "jsonl": Kind(_read_jsonl, suffixes=_JSON_LINES, by_lines=True),
        "parquet": Kind(tables.read_parquet, suffixes=(".parquet",)),
        "csv": Kind(_read_csv, suffixes=(".csv", ".tsv")),
        "html": Kind(plain.read_html, suffixes=(".html", ".htm", ".xhtml")),
        "warc": Kind(web.read_warc, suffixes=(".warc", ".wet")),
        "epub": Kind(plain.read_epub, suffixes=(".epub",)),
        "pdf": Kind(plain.read_pdf, suffixes=(".pdf",)),
        "pairs": Kind(
            pairs.read_pairs,
            (pairs.SOURCE, pairs.TARGET),
            (*_JSON_LINES, ".tsv", ".csv", ".tmx", ".po", ".mo"),
        ),
        "qa": Kind(dialogue.read_qa, ("context", "question", "answers"), (".json", *_JSON_LINES)),
        "chat": Kind(dialogue.read_chat, ("messages",), (".json", *_JSON_LINES)),
        "preferences": Kind(
            pairs.read_preferences, (pairs.PROMPT, pairs.CHOSEN, pairs.REJECTED), _JSON_LINES
        ),
    },
)
FIELDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: READERS[name].fields for name in READERS.names()}
)


def find_parts(
    name: str, read: ReadConfig, *, part_bytes: int = _PART_BYTES
) -> tuple[list[Part], list[Dropped]]:
    """Return the parts of the source ``name`` in canonical order, and what was passed over.

    The documents of all parts together, in order, do not depend on ``part_bytes``.

    Raises:
        DataError: the source names nothing that can be read.
    """
    kind = READERS[read.source]
    if read.source == "pydocs":
        return _pydocs_parts(name, read, part_bytes), []
    suffixes = tuple(f"{suffix}{packed}" for suffix in kind.suffixes for packed in COMPRESSED_SUFFIXES)
    files, dropped = find_files(read, suffixes)
    if read.source == "pairs":
        files = [file for file in files if not pairs.is_second_side(file, read)]
    prints = [_fingerprint(file, read) for file in files]
    if read.max_bytes is not None:
        together = digest_bytes("\n".join(mark for mark, _ in prints).encode())
        return [Part(name, tuple(files), together, max(1, read.max_bytes))], dropped
    parts: list[Part] = []
    for file, (mark, size) in zip(files, prints, strict=True):
        parts += _cut(Part(name, (file,), mark, max(1, size)), kind, read, part_bytes)
    return parts, dropped


def _pydocs_parts(name: str, read: ReadConfig, part_bytes: int) -> list[Part]:
    mark = pydocs.environment_fingerprint()
    if read.max_bytes is not None:
        return [Part(name, ("",), mark, read.max_bytes)]
    ranges = pydocs.find_ranges(part_bytes)
    return [_range(Part(name, ("",), mark, 1), start, stop, size) for start, stop, size in ranges]


def read_part(part: Part, read: ReadConfig) -> Iterator[Document | Dropped]:
    """Yield the documents of a part, and what was refused.

    Raises:
        DataError: a file is damaged and ``data.on_bad_file=fail``, or does not hold what it is asked for.
    """
    size = 0
    for path in part.paths:
        for item in _read_file(path, part, read):
            yield item
            if isinstance(item, Document) and read.max_bytes is not None:
                size += len(item.text.encode("utf-8", "surrogatepass"))
                if size >= read.max_bytes:
                    return


def _read_file(path: str, part: Part, read: ReadConfig) -> Iterator[Document | Dropped]:
    kind = READERS[read.source]
    alone = Part(part.source, (path,), part.fingerprint, part.size, part.start, part.stop)
    if read.source == "pydocs":
        yield from kind.read(_NO_FILE, alone, read)
        return
    try:
        with local_copy(path, read) as file:
            if file.is_file() and file.stat().st_size:
                yield from kind.read(file, alone, read)
            elif file.is_file():
                yield Dropped(printable(path), "empty_file", "the file holds nothing")
            else:
                yield Dropped(printable(path), "unreadable", "not a regular file, or a link to nothing")
    except PermissionError as error:
        yield Dropped(printable(path), "unreadable", str(error))
    except DamagedFile as error:
        if read.on_bad_file == "fail":
            raise DataError(
                f"{printable(path)} is damaged: {error}",
                where=printable(path),
                remedy="copy or download it again, or go on without the rest of it: data.on_bad_file=skip",
            ) from error
        yield Dropped(printable(path), "damaged_file", f"what follows the damage is lost: {error}")


def _fingerprint(path: str, read: ReadConfig) -> tuple[str, int]:
    """Return what identifies the content of a file, and its size."""
    if is_remote(path):
        return fingerprint(path, read.stall_seconds)
    file = Path(path)
    if not file.is_file():
        return "missing", 1
    try:
        return digest_file(file), file.stat().st_size
    except PermissionError:
        return "unreadable", 1


def _cut(whole: Part, kind: Kind, read: ReadConfig, part_bytes: int) -> list[Part]:
    """Cut a big local file into ranges of about ``part_bytes``, where its format can be read so."""
    file = Path(whole.path)
    if whole.size <= part_bytes or is_remote(whole.path):
        return [whole]
    if read.source == "parquet":
        return _cut_row_groups(whole, file, part_bytes)
    if not kind.by_lines or file_is_compressed(file):
        return [whole]
    starts = range(0, whole.size, part_bytes)
    return [_range(whole, start, min(start + part_bytes, whole.size), part_bytes) for start in starts]


def _cut_row_groups(whole: Part, file: Path, part_bytes: int) -> list[Part]:
    try:
        sizes = tables.row_groups(file)
    except DamagedFile:
        return [whole]  # whoever reads it says what is wrong
    parts, start, size = [], 0, 0
    for number, group in enumerate(sizes, 1):
        size += group
        if size >= part_bytes or number == len(sizes):
            parts.append(_range(whole, start, number, size))
            start, size = number, 0
    return parts or [whole]


def _range(whole: Part, start: int, stop: int, size: int) -> Part:
    mark = digest_bytes(f"{whole.fingerprint} {start} {stop}".encode())
    return Part(whole.source, whole.paths, mark, max(1, size), start, stop)
