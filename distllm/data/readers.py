"""Sources of documents, and the closed registry that ``data.source`` selects from.

A source yields a ``Document`` for each text it can read and a ``Dropped`` for each it cannot, in an
order that depends on nothing but the input. What makes the whole source useless is a ``DataError``.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path

from distllm.config.schema import Config
from distllm.data.pydocs import read_pydocs
from distllm.data.records import Document, Dropped
from distllm.errors import DataError
from distllm.registry import Registry

_GZIP_MAGIC = b"\x1f\x8b"
_JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
_PEEK_BYTES = 4096


def read_text(config: Config) -> Iterator[Document | Dropped]:
    """Yield one document per file of ``data.paths``; files are UTF-8, read whole.

    Rules of refusal: ``unreadable``, ``not_text`` (a NUL byte), ``undecodable`` (not UTF-8), and
    those of ``find_files``.
    """
    for file in find_files(config.data.paths):
        yield file if isinstance(file, Dropped) else _read_text_file(file)


def read_jsonl(config: Config) -> Iterator[Document | Dropped]:
    """Yield one document per line of the JSON-lines files of ``data.paths``, plain or gzip.

    Of a directory the files named ``.jsonl`` or ``.ndjson`` are read, with or without ``.gz``.
    Rules of refusal: ``unreadable``, ``not_text``, ``broken_json``, ``not_an_object``,
    ``no_text_key``, ``text_not_string``, and those of ``find_files``.

    Raises:
        DataError: a gzip file is cut or damaged.
    """
    for file in find_files(config.data.paths, _JSONL_SUFFIXES):
        if isinstance(file, Dropped):
            yield file
        else:
            yield from _read_jsonl_file(file, config.data.text_key)


SOURCES: Registry[Callable[[Config], Iterator[Document | Dropped]]] = Registry(
    "data source", "data.source", {"pydocs": read_pydocs, "text": read_text, "jsonl": read_jsonl}
)


def find_files(entries: Sequence[str], suffixes: tuple[str, ...] = ("",)) -> Iterator[Path | Dropped]:
    """Yield the files that ``entries`` (files, directories, globs) name, each once.

    Entries keep their order; what one of them names is sorted. A directory is walked whole, but
    hidden names (rule ``hidden``) and symbolic links to directories (rule ``symlinked_directory``)
    are not entered, and of its files those ending in one of ``suffixes`` are taken. An existing
    path is taken as it is, even if it looks like a glob.

    Raises:
        DataError: there are no entries, or one of them names nothing.
    """
    if not entries:
        raise DataError(
            "data.paths is empty",
            where="data.paths",
            remedy="set it, such as data.paths=[corpus/,notes/*.txt]",
        )
    seen: set[Path] = set()
    for entry in entries:
        found = False
        for file in _expand(entry, suffixes):
            found = True
            if isinstance(file, Dropped):
                yield file
            elif file not in seen:
                seen.add(file)
                yield file
        if not found:
            raise DataError(
                f"{entry!r} names no file to read",
                where="data.paths",
                remedy="correct the path; a directory must hold files"
                + (f" named {', '.join(suffixes)}" if any(suffixes) else ""),
            )


def _expand(entry: str, suffixes: tuple[str, ...]) -> Iterator[Path | Dropped]:
    path = Path(entry).expanduser()
    if path.is_dir():
        yield from _walk(path, suffixes)
    elif path.is_file():
        yield path
    elif path.exists():
        raise DataError(
            f"{entry!r} is neither a file nor a directory",
            where="data.paths",
            remedy="give files, directories or globs",
        )
    elif any(mark in entry for mark in "*?["):
        yield from _glob(path, suffixes)
    else:
        raise DataError(
            f"{entry!r} does not exist",
            where="data.paths",
            remedy="correct the path, or remove it from data.paths",
        )


def _glob(pattern: Path, suffixes: tuple[str, ...]) -> Iterator[Path | Dropped]:
    parts = pattern.parts
    magic = next(i for i, part in enumerate(parts) if any(mark in part for mark in "*?["))
    base = Path(*parts[:magic])
    try:
        matches = sorted(base.glob(str(Path(*parts[magic:]))))
    except ValueError as error:
        raise DataError(
            f"{str(pattern)!r} is not a glob: {error}", where="data.paths", remedy="use *, ?, [..] and **"
        ) from error
    for match in matches:
        between = [match, *match.parents]
        between = between[: between.index(base)]
        if any(part.is_symlink() and part.is_dir() for part in between):
            yield _symlinked(match)
        elif match.is_dir():
            yield from _walk(match, suffixes)
        else:
            yield match


def _walk(directory: Path, suffixes: tuple[str, ...]) -> Iterator[Path | Dropped]:
    if not os.access(directory, os.R_OK | os.X_OK):
        yield Dropped(name_of(directory), "unreadable", "no permission to list it")
        return
    for entry in sorted(directory.iterdir()):
        if entry.name.startswith("."):
            yield Dropped(name_of(entry), "hidden", "its name starts with a dot")
        elif entry.is_dir():
            yield from [_symlinked(entry)] if entry.is_symlink() else _walk(entry, suffixes)
        elif entry.name.endswith(suffixes):
            yield entry


def _symlinked(path: Path) -> Dropped:
    return Dropped(name_of(path), "symlinked_directory", "symbolic links to directories are not followed")


def name_of(path: Path) -> str:
    """Return ``path`` as text that can be encoded, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def _read_text_file(path: Path) -> Document | Dropped:
    name = name_of(path)
    if not path.is_file():
        return Dropped(name, "unreadable", "not a regular file, or a link to nothing")
    try:
        content = path.read_bytes()
    except OSError as error:
        return Dropped(name, "unreadable", str(error))
    if (nul := content.find(b"\0")) >= 0:
        return Dropped(name, "not_text", f"NUL byte at offset {nul}")
    try:
        return Document.of_text(name, content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Dropped(
            name, "undecodable", f"byte {content[error.start]:#04x} at offset {error.start} is not UTF-8"
        )


def _open_lines(path: Path) -> gzip.GzipFile | BufferedReader:
    with path.open("rb") as stream:
        compressed = stream.read(2) == _GZIP_MAGIC
    return gzip.open(path) if compressed else path.open("rb")


def _read_jsonl_file(path: Path, text_key: str) -> Iterator[Document | Dropped]:
    name = name_of(path)
    if not path.is_file():
        yield Dropped(name, "unreadable", "not a regular file, or a link to nothing")
        return
    try:
        with _open_lines(path) as stream:
            for number, line in enumerate(stream, 1):
                if number == 1 and b"\0" in line[:_PEEK_BYTES]:
                    yield Dropped(name, "not_text", "NUL byte in the first line")
                    return
                if record := line.strip():
                    yield _read_record(f"{name}:{number}", record, text_key)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is a damaged gzip file: {error}",
            where=str(path),
            remedy="copy or download the file again",
        ) from error
    except OSError as error:
        yield Dropped(name, "unreadable", str(error))


def _read_record(name: str, line: bytes, text_key: str) -> Document | Dropped:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Dropped(name, "broken_json", str(error))
    if not isinstance(record, dict):
        return Dropped(name, "not_an_object", f"a JSON {type(record).__name__}, expected an object")
    if text_key not in record:
        return Dropped(name, "no_text_key", f"no key {text_key!r}; it has {', '.join(map(repr, record))}")
    text = record[text_key]
    if not isinstance(text, str):
        return Dropped(name, "text_not_string", f"{text_key!r} is a JSON {type(text).__name__}")
    return Document.of_text(name, text)
