"""The texts that are searched: documents of a folder or file, cut into passages that a model can read.

Shapes: N pieces of one document.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain, pairwise
from pathlib import Path

from distllm.config.schema_read import ReadConfig
from distllm.data.read import Part, find_parts, read_part
from distllm.data.records import Dropped, Progress
from distllm.data.tokenizer import Tokenizer
from distllm.errors import DataError
from distllm.fsio import atomic_open, atomic_write_json, digest_bytes, read_json
from distllm.units import format_count

_KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".html": "html", ".htm": "html", ".xhtml": "html", ".epub": "epub", ".pdf": "pdf",
    ".warc": "warc", ".wet": "warc",
}  # fmt: skip
Tell = Callable[[Progress], None]
_VERSION = 1
"""Of the rules by which documents are cut."""
_GROUP_BYTES, _GROUP_PARTS = 4 * 2**20, 1024
_COUNTS = ".json"
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

    documents: int = 0
    passages: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)

    def plus(self, other: Written) -> Written:
        """Return what was written in both."""
        dropped = Counter(self.dropped) + Counter(other.dropped)
        return Written(
            self.documents + other.documents,
            self.passages + other.passages,
            dict(sorted(dropped.items())),
        )


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

    Groups of its parts are written beside ``path`` first, each whole or absent and named by the digest of
    what it follows from: a call that was ended goes on after the last of them.

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
    written, files = Written(), list[Path]()
    with _own_words():
        parts, dropped = find_parts("corpus", read)
        written = written.plus(Written(dropped=Counter(item.rule for item in dropped)))
        total, begun = sum(part.size for part in parts), 0
        for group in _groups(parts):
            file = path.with_name(f"{_mark(group, read, tokenizer, longest)}.passages")
            place = _Place(tell, begun, sum(part.size for part in group), total, written.documents)
            written = written.plus(_group(group, read, tokenizer, longest, file, place))
            files.append(file)
            begun += place.size
    tell(Progress("read", total, total, "bytes", f"{format_count(written.documents)} documents"))
    if written.passages == 0:
        for file in files:
            file.unlink()
            file.with_suffix(_COUNTS).unlink()
        left_out = ", ".join(f"{count} by {rule}" for rule, count in sorted(written.dropped.items()))
        raise DataError(
            f"the corpus holds no text: {written.documents} documents, left out {left_out or 'none'}",
            where=", ".join(read.paths) or read.source,
            remedy="name a folder or file with text; source=... says how it is read, text_key=... which key",
        )
    with atomic_open(path) as stream:
        for file in files:
            with file.open("rb") as group_stream:
                shutil.copyfileobj(group_stream, stream)
    return written


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a group begins in the corpus, in bytes and documents, and how large both are."""

    tell: Tell
    begun: int
    size: int
    total: int
    documents: int

    def told(self, done: int, documents: int) -> None:
        """Show how far reading has come: so many bytes and documents of the group."""
        count = format_count(self.documents + documents)
        at = self.begun + min(done, self.size)
        self.tell(Progress("read", at, self.total, "bytes", f"{count} documents"))


def _groups(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Yield neighbouring parts of some megabytes together."""
    group = list[Part]()
    for part in parts:
        group.append(part)
        if sum(each.size for each in group) >= _GROUP_BYTES or len(group) == _GROUP_PARTS:
            yield group
            group = []
    if group:
        yield group


def _mark(group: Sequence[Part], read: ReadConfig, tokenizer: Tokenizer, longest: int) -> str:
    """Return the digest of all that the passages of a group follow from."""
    asked = {key: value for key, value in asdict(read).items() if key != "stall_seconds"}
    told = [_VERSION, asked, tokenizer.fingerprint, longest, [asdict(part) for part in group]]
    return digest_bytes(json.dumps(told, sort_keys=True, default=str).encode())


def _group(
    group: Sequence[Part],
    read: ReadConfig,
    tokenizer: Tokenizer,
    longest: int,
    file: Path,
    place: _Place,
) -> Written:
    """Write the passages of some parts, and then their counts, unless an earlier call has."""
    counts = file.with_suffix(_COUNTS)
    if counts.is_file() and file.is_file():
        return Written(**read_json(counts))
    documents = passages = done = 0
    folder = f"{read.paths[0].rstrip('/')}/" if len(read.paths) == 1 else ""
    dropped: Counter[str] = Counter()
    with atomic_open(file) as stream:
        for document in chain.from_iterable(read_part(part, read) for part in group):
            if isinstance(document, Dropped):
                dropped[document.rule] += 1
                continue
            documents += 1
            done += len(document.text)  # characters: about bytes, and packed files hold more
            place.told(done, documents)
            whole = document.text.encode("utf-8", "replace").decode()  # half a surrogate pair is no character
            for text in passages_of(whole, tokenizer, longest):
                name = document.id.removeprefix(folder)
                line = json.dumps({"document": name, "text": text}, ensure_ascii=False)
                stream.write(line.encode() + b"\n")
                passages += 1
    written = Written(documents, passages, dict(sorted(dropped.items())))
    atomic_write_json(counts, asdict(written))
    return written


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


@contextmanager
def _own_words() -> Iterator[None]:
    """Tell what is wrong with a corpus in the words of this command."""
    try:
        yield
    except DataError as error:
        where, remedy = (
            (said or "").replace("data.paths", "corpus").replace("data.", "")
            for said in (error.where, error.remedy)
        )
        cause = error.cause.replace("data.paths", "corpus")
        raise error.recast(DataError, where=where, remedy=remedy, cause=cause) from error
