"""The corpus of every Python environment: docstrings and help topics.

Docstrings are taken from the source files with ``ast``; no module is imported or executed, except
``pydoc_data.topics``, which is a table of texts. One document per module: its dotted name as
heading, then the docstrings of the module, its classes and functions with their qualified names,
in source order. One document per help topic.

Modules come from the standard library, then from the installed packages; of two with one name the
first counts. Left out by name are tests (a part of the dotted name is one of ``TESTS``, starts with
``test_`` or ends with ``_test`` or ``_tests``), copies of other projects (a part is one of
``VENDOR``), and files whose names are not identifiers, which cannot be imported.

Documents are ordered by a hash of their names, so that the first bytes of the corpus come from
all packages and not from the start of the alphabet.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from distllm.config.schema_read import ReadConfig
from distllm.data.read.part import Part
from distllm.data.records import Document, Dropped
from distllm.fsio import digest_bytes
from distllm.seeds import derive_seed

TESTS = frozenset({"test", "tests", "conftest"})
VENDOR = frozenset({"_vendor", "_vendored", "vendor", "vendored", "extern", "externals", "third_party"})
_PACKAGE_DIRECTORIES = frozenset({"site-packages", "dist-packages"})
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BODIES = (ast.stmt, ast.excepthandler, ast.match_case)


def read_pydocs(file: Path, part: Part, read: ReadConfig) -> Iterator[Document | Dropped]:
    """Yield the documents of this environment that belong to the part, which has no file.

    Rules of refusal: ``unreadable``, ``not_python`` (it does not parse), ``no_docstring``.
    """
    topics, modules, names = _catalogue()
    for kind, name in names[part.start : part.stop]:
        if kind == "topic":
            yield Document.from_text(f"topic:{name}", f"# {name}\n\n{topics[name]}")
        else:
            yield read_module(name, modules[name])


def find_ranges(part_bytes: int) -> list[tuple[int, int, int]]:
    """Return start, stop and bytes of source of every range of about ``part_bytes`` to read at a time."""
    topics, modules, names = _catalogue()
    ranges, start, size = [], 0, 0
    for stop, (kind, name) in enumerate(names, 1):
        size += len(topics[name]) if kind == "topic" else modules[name].stat().st_size
        if size >= part_bytes or stop == len(names):
            ranges.append((start, stop, size))
            start, size = stop, 0
    return ranges


@cache
def _catalogue() -> tuple[dict[str, str], dict[str, Path], list[tuple[str, str]]]:
    """Return topics, modules, and kind and name of all of them in the order of their hashes."""
    topics, modules = _help_topics(), _installed_modules()
    names = [*(("module", name) for name in modules), *(("topic", name) for name in topics)]
    return topics, modules, sorted(names, key=lambda name: (derive_seed(0, "pydocs", *name), name))


def environment_fingerprint() -> str:
    """Return what identifies this environment: names, sizes and times of its modules."""
    marks = [
        f"{name} {(stat := path.stat()).st_size} {stat.st_mtime_ns}"
        for name, path in _installed_modules().items()
    ]
    return digest_bytes("\n".join([sys.version, *sorted(marks)]).encode())


def _installed_modules() -> dict[str, Path]:
    return find_modules([Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")])


def find_modules(roots: list[Path]) -> dict[str, Path]:
    """Return the source file of every module below ``roots``, by dotted name."""
    modules: dict[str, Path] = {}
    for root in dict.fromkeys(roots):
        for path in _python_files(root):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            if parts and all(map(_is_wanted, parts)):
                modules.setdefault(".".join(parts), path)
    return modules


def _python_files(directory: Path) -> Iterator[Path]:
    """Yield files sorted by name; skip unreadable directories, from which nothing can be imported."""
    try:
        entries = sorted(directory.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.suffix == ".py" and entry.is_file():
            yield entry
        elif _is_wanted(entry.name) and entry.is_dir() and not entry.is_symlink():
            yield from _python_files(entry)


def _is_wanted(part: str) -> bool:
    is_test = (
        part in ("test", "tests", "conftest")
        or part.startswith("test_")
        or part.endswith(("_test", "_tests"))
    )
    return part.isidentifier() and not is_test and part not in VENDOR and part not in _PACKAGE_DIRECTORIES


def read_module(name: str, path: Path) -> Document | Dropped:
    """Return the docstrings of one source file under the id ``module:<name>``."""
    id_ = f"module:{name}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            module = ast.parse(path.read_bytes())
        sections = list(_sections(module, name))
    except OSError as error:
        return Dropped(id_, "unreadable", str(error))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return Dropped(id_, "not_python", f"{path}: {error}")
    if not sections:
        return Dropped(id_, "no_docstring", "nothing in it has a docstring")
    heading = [] if sections[0][0] == name else [f"# {name}"]
    paragraphs = [f"{'#' if title == name else '##'} {title}\n\n{text}" for title, text in sections]
    return Document.from_text(id_, "\n\n".join([*heading, *paragraphs]))


def _sections(node: ast.AST, qualified_name: str) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, docstring) of ``node`` and all definitions inside, in source order."""
    if isinstance(node, (ast.Module, *_DEFINITIONS)):
        text = ast.get_docstring(node)
        if text:
            yield qualified_name, text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _DEFINITIONS):
            yield from _sections(child, f"{qualified_name}.{child.name}")
        elif isinstance(child, _BODIES):
            yield from _sections(child, qualified_name)


def _help_topics() -> dict[str, str]:
    """Return the texts behind ``help('topic')``, empty where the interpreter comes without them."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return dict(topics)
