"""The texts that are searched: documents of a folder or file, cut into passages that a model can read.

Shapes: N pieces of one document.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from distllm.config.schema_read import ReadConfig
from distllm.data.read import find_parts, read_part
from distllm.data.records import Document, Dropped, Progress
from distllm.data.tokenizer import Tokenizer
from distllm.errors import DataError
from distllm.fsio import atomic_open
from distllm.units import format_count

_KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".html": "html", ".htm": "html", ".xhtml": "html", ".epub": "epub", ".pdf": "pdf",
    ".warc": "warc", ".wet": "warc",
}  # fmt: skip
Tell = Callable[[Progress], None]
_PIECE = re.compile(r"\S+\s*")
_HEADING = re.compile(r"(?:\A|(?<=\n\n))#{1,6} +\S[^\n]*(?=\n\n|\n?\Z)")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document, named like it: what is embedded and found."""

    document: str
    text: str


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: how many documents and passages, and what was left out by which rule."""

    documents: int
    passages: int
    dropped: dict[str, int]


def kind_of(path: str) -> str:
    """Return the kind of input that a file's name tells; a directory and any other name are ``text``."""
    for suffix in reversed(Path(path).suffixes):
        if suffix.lower() in _KINDS:
            return _KINDS[suffix.lower()]
    return "text"


def write_passages(
    read: ReadConfig, tokenizer: Tokenizer, longest: int, path: Path, tell: Tell = lambda _: None
) -> Written:
    """Write the passages of a corpus as JSON lines, in the order of its documents.

    Args:
        read: the corpus.
        tokenizer: counts ids.
        longest: ids of a passage at most, but for a single word that has more.
        path: the file.
        tell: shown how far it has come.

    Raises:
        DataError: there is no such corpus, or it holds no text.
        StorageError: the file cannot be written.
    """
    documents = passages = 0
    folder = f"{read.paths[0].rstrip('/')}/" if len(read.paths) == 1 else ""
    dropped: Counter[str] = Counter()
    with atomic_open(path) as stream:
        for document in _documents(read, tell):
            if isinstance(document, Dropped):
                dropped[document.rule] += 1
                continue
            documents += 1
            whole = document.text.encode("utf-8", "replace").decode()  # half a surrogate pair is no character
            for text in passages_of(whole, tokenizer, longest):
                name = document.id.removeprefix(folder)
                line = json.dumps({"document": name, "text": text}, ensure_ascii=False)
                stream.write(line.encode() + b"\n")
                passages += 1
    if passages == 0:
        left_out = ", ".join(f"{count} by {rule}" for rule, count in sorted(dropped.items()))
        raise DataError(
            f"the corpus holds no text: {documents} documents, left out {left_out or 'none'}",
            where=", ".join(read.paths) or read.source,
            remedy="name a folder or file with text; source=... says how it is read, text_key=... which key",
        )
    return Written(documents, passages, dict(sorted(dropped.items())))


def read_passages(content: bytes) -> list[Passage]:
    """Return the passages of a file's content."""
    return [Passage(**json.loads(line)) for line in content.splitlines()]


def passages_of(text: str, tokenizer: Tokenizer, longest: int) -> list[str]:
    """Cut a document into passages of ``longest`` ids, each of which says what it is about.

    Sections, which begin at a heading (``# ...`` between empty lines), stay together and whole where
    they fit. Each passage begins with the title of the document, its first heading, and what continues
    a section repeats the section's: the words around a piece are often the only ones that name its
    subject. A text without headings is `cut`.
    """
    title = _HEADING.search(text)
    if title is None:
        return cut(text, tokenizer, longest)
    named = _fitting(title[0], tokenizer, longest)
    room = longest - _size(named, tokenizer)
    passages, current, held = list[str](), list[str](), 0
    sections = _sections(text)
    for section, size in zip(sections, _sizes(sections, tokenizer), strict=True):
        if current and held + size > room:
            passages.append("".join(current))
            current, held = [], 0
        if size <= room:
            current.append(section)
            held += size
        else:
            passages += _long_section(section, tokenizer, room)
    passages.append("".join(current))
    bare = (passage.strip() for passage in passages if passage.strip())
    return [passage if passage.startswith(title[0]) else f"{named}{passage}" for passage in bare]


def _sections(text: str) -> list[str]:
    """Return what stands before the first heading, if anything, and each heading with what follows it."""
    begins = [0, *(found.start() for found in _HEADING.finditer(text)), len(text)]
    return [text[begin:end] for begin, end in pairwise(begins) if begin < end]


def _long_section(section: str, tokenizer: Tokenizer, room: int) -> list[str]:
    """Cut a section; pieces after the first begin with its heading."""
    heading = _HEADING.match(section)
    named = _fitting(heading[0], tokenizer, room) if heading else ""
    first, *others = cut(section, tokenizer, room - _size(named, tokenizer)) or [""]
    return [first, *(f"{named}{other}" for other in others)]


def _fitting(heading: str, tokenizer: Tokenizer, longest: int) -> str:
    """Return a heading as a line, or nothing where it would take more than a quarter of a passage."""
    line = f"{heading}\n"
    return line if 4 * _size(line, tokenizer) <= longest else ""


def _size(text: str, tokenizer: Tokenizer) -> int:
    return _sizes([text], tokenizer)[0]


def cut(text: str, tokenizer: Tokenizer, longest: int) -> list[str]:
    """Cut a text between its lines, or words where a line is too long, into pieces of ``longest`` ids."""
    pieces = list[str]()
    lines = text.splitlines(keepends=True)
    for line, size in zip(lines, _sizes(lines, tokenizer), strict=True):
        pieces += _PIECE.findall(line) if size > longest else [line]
    passages, current, held = list[str](), list[str](), 0
    for piece, size in zip(pieces, _sizes(pieces, tokenizer), strict=True):
        if current and held + size > longest:
            passages.append("".join(current))
            current, held = [], 0
        current.append(piece)
        held += size
    passages.append("".join(current))
    return [passage.strip() for passage in passages if passage.strip()]


def _sizes(texts: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    return [len(ids) for ids in tokenizer.encode_batch(texts)] if texts else []


def _documents(read: ReadConfig, tell: Tell) -> Iterator[Document | Dropped]:
    """Yield the documents of a corpus; what is wrong with it is told in the words of this command."""
    try:
        parts, dropped = find_parts("corpus", read)
        yield from dropped
        begun, count, total = 0, 0, sum(part.size for part in parts)
        for part in parts:
            done = 0
            for document in read_part(part, read):
                yield document
                if isinstance(document, Document):
                    done += len(document.text)  # characters: about bytes, and packed files hold more
                    count += 1
                    told = begun + min(done, part.size)
                    tell(Progress("read", told, total, "bytes", f"{format_count(count)} documents"))
            begun += part.size
        tell(Progress("read", total, total, "bytes", f"{format_count(count)} documents"))
    except DataError as error:
        where, remedy = (
            (said or "").replace("data.paths", "corpus").replace("data.", "")
            for said in (error.where, error.remedy)
        )
        cause = error.cause.replace("data.paths", "corpus")
        raise error.recast(DataError, where=where, remedy=remedy, cause=cause) from error
