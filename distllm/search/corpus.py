"""The texts that are searched: documents of a folder or file, cut into passages that a model can read.

Shapes: N pieces of one document.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distllm.config.schema_read import ReadConfig
from distllm.data.read import find_parts, read_part
from distllm.data.records import Document, Dropped
from distllm.data.tokenizer import Tokenizer
from distllm.errors import DataError
from distllm.fsio import atomic_open

_KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".html": "html", ".htm": "html", ".xhtml": "html", ".epub": "epub", ".pdf": "pdf",
    ".warc": "warc", ".wet": "warc",
}  # fmt: skip
_PIECE = re.compile(r"\S+\s*")


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


def write_passages(read: ReadConfig, tokenizer: Tokenizer, longest: int, path: Path) -> Written:
    """Write the passages of a corpus as JSON lines, in the order of its documents.

    Args:
        read: the corpus.
        tokenizer: counts ids.
        longest: ids of a passage at most, but for a single word that has more.
        path: the file.

    Raises:
        DataError: there is no such corpus, or it holds no text.
        StorageError: the file cannot be written.
    """
    documents = passages = 0
    folder = f"{read.paths[0].rstrip('/')}/" if len(read.paths) == 1 else ""
    dropped: Counter[str] = Counter()
    with atomic_open(path) as stream:
        for document in _documents(read):
            if isinstance(document, Dropped):
                dropped[document.rule] += 1
                continue
            documents += 1
            whole = document.text.encode("utf-8", "replace").decode()  # half a surrogate pair is no character
            for text in cut(whole, tokenizer, longest):
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


def _documents(read: ReadConfig) -> Iterator[Document | Dropped]:
    """Yield the documents of a corpus; what is wrong with it is told in the words of this command."""
    try:
        parts, dropped = find_parts("corpus", read)
        yield from dropped
        for part in parts:
            yield from read_part(part, read)
    except DataError as error:
        where, remedy = (
            (said or "").replace("data.paths", "corpus").replace("data.", "")
            for said in (error.where, error.remedy)
        )
        cause = error.cause.replace("data.paths", "corpus")
        raise error.retold(DataError, where=where, remedy=remedy, cause=cause) from error
