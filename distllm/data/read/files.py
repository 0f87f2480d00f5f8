"""The files that ``data.paths`` names: files, directories, globs and URLs, each once, in one order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from distllm.config.schema_read import ReadConfig
from distllm.data.read.part import printable
from distllm.data.records import Dropped
from distllm.data.remote import GLOB_MARKS, expand, is_remote
from distllm.errors import DataError


def find_files(read: ReadConfig, suffixes: tuple[str, ...]) -> tuple[list[str], list[Dropped]]:
    """Return the files in order of their paths, and what was passed over.

    A directory is searched for files that end in one of ``suffixes``, without hidden names (rule
    ``hidden``) and symbolic links to directories (rule ``symlinked_directory``). An existing path is
    taken literally, even if it looks like a glob.

    Raises:
        DataError: there are no entries, or one of them names nothing.
    """
    if not read.paths:
        raise DataError(
            "data.paths is empty",
            where="data.paths",
            remedy="set it, such as data.paths=[corpus/,notes/*.txt]",
        )
    found: dict[str, Dropped | None] = {}
    for entry in read.paths:
        named = False
        for item in _expand(entry, suffixes, read.stall_seconds):
            named = True
            if isinstance(item, Dropped):
                found.setdefault(item.id, item)
            else:
                found[item] = None
        if not named:
            wanted = f" named {', '.join(suffixes)}" if any(suffixes) else ""
            raise DataError(
                f"{entry!r} names no file to read",
                where="data.paths",
                remedy=f"correct the path; a directory must hold files{wanted}",
            )
    files = sorted(name for name, dropped in found.items() if dropped is None)
    return files, [dropped for _, dropped in sorted(found.items()) if dropped is not None]


def _expand(entry: str, suffixes: tuple[str, ...], stall_seconds: float) -> Iterator[str | Dropped]:
    if is_remote(entry):
        yield from expand(entry, suffixes, stall_seconds)
        return
    path = Path(entry).expanduser()
    if path.is_dir():
        yield from _walk(path, suffixes)
    elif path.is_file():
        yield str(path)
    elif path.exists():
        raise DataError(
            f"{entry!r} is neither a file nor a directory",
            where="data.paths",
            remedy="give files, directories or globs",
        )
    elif any(mark in entry for mark in GLOB_MARKS):
        yield from _glob(path, suffixes)
    else:
        raise DataError(
            f"{entry!r} does not exist",
            where="data.paths",
            remedy="correct the path, or remove it from data.paths",
        )


def _glob(pattern: Path, suffixes: tuple[str, ...]) -> Iterator[str | Dropped]:
    parts = pattern.parts
    magic = next(i for i, part in enumerate(parts) if any(mark in part for mark in GLOB_MARKS))
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
            yield str(match)


def _walk(directory: Path, suffixes: tuple[str, ...]) -> Iterator[str | Dropped]:
    if not os.access(directory, os.R_OK | os.X_OK):
        yield Dropped(printable(str(directory)), "unreadable", "no permission to list it")
        return
    for entry in sorted(directory.iterdir()):
        if entry.name.startswith("."):
            yield Dropped(printable(str(entry)), "hidden", "its name starts with a dot")
        elif entry.is_dir():
            yield from [_symlinked(entry)] if entry.is_symlink() else _walk(entry, suffixes)
        elif entry.name.lower().endswith(suffixes):
            yield str(entry)


def _symlinked(path: Path) -> Dropped:
    return Dropped(
        printable(str(path)), "symlinked_directory", "symbolic links to directories are not followed"
    )
