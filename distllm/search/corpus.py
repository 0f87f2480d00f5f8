"""The texts that are searched: documents of a folder or file, cut into passages that fit the model.

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
from typing import Any

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
_VERSION = 2
"""Version of the rules by which documents are cut."""
_GROUP_BYTES, _GROUP_PARTS = 4 * 2**20, 1024
_COUNTS = ".json"
_PIECE = re.compile(r"[^\s。！？；]+[。！？；]*\s*|[。！？；]+\s*")
"""A word and the space behind it; a sentence where words have none between them, as in Chinese."""
_HEADING = re.compile(r"(?:\A|(?<=\n\n))#{1,6} +\S[^\n]*(?=\n\n|\n?\Z)")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document, which is embedded and found, and the document's name."""

    document: str
    text: str


@dataclass(frozen=True, slots=True)
class Written:
    """How many documents and passages were written, and how many were left out by which rule."""

    documents: int = 0
    passages: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)

    def plus(self, other: Written) -> Written:
        """Return the sum of both."""
        dropped = Counter(self.dropped) + Counter(other.dropped)
        return Written(
            self.documents + other.documents,
            self.passages + other.passages,
            dict(sorted(dropped.items())),
        )


@dataclass(frozen=True, slots=True)
class Corpus:
    """The parts of a corpus in order, and how many files were left out by which rule."""

    parts: tuple[Part, ...]
    dropped: Mapping[str, int]

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Corpus:
        """Return the corpus whose ``asdict`` went through JSON."""
        parts = (Part(**{**part, "paths": tuple(part["paths"])}) for part in facts["parts"])
        return cls(tuple(parts), facts["dropped"])


def kind_of(path: str) -> str:
    """Return the kind of input by the suffix of a file; a directory and any other name are ``text``."""
    for suffix in reversed(Path(path).suffixes):
        if suffix.lower() in _KINDS:
            return _KINDS[suffix.lower()]
    return "text"


def find_corpus(read: ReadConfig) -> Corpus:
    """Return the parts of a corpus.

    Raises:
        DataError: there is no such corpus.
    """
    with _own_words():
        parts, dropped = find_parts("corpus", read)
    return Corpus(tuple(parts), dict(Counter(item.rule for item in dropped)))


@dataclass(frozen=True, slots=True)
class PassageWriter:
    """Writes the passages of a corpus as JSON lines, group by group of its parts.

    A group is written to a file of its own, named by the digest of all that it depends on. So a build that
    was stopped goes on after the groups that it has, and any number of processes can share the groups.

    Attributes:
        corpus: what is read.
        read: how it is read.
        tokenizer: counts ids.
        longest: ids of a passage at most.
        path: the file of all passages; groups lie beside it.
        tell: shown how far the writing is.
    """

    corpus: Corpus
    read: ReadConfig
    tokenizer: Tokenizer
    longest: int
    path: Path
    tell: Tell = lambda _: None

    def write_share(self, rank: int, ranks: int) -> None:
        """Write every ``ranks``-th group, from number ``rank`` on.

        Raises:
            DataError: a part cannot be read.
            StorageError: a file cannot be written.
        """
        own = list(self._groups())[rank::ranks]
        self._write_groups(own)

    def write(self) -> Written:
        """Write the groups that nobody has written yet, then all of them as one file.

        Raises:
            DataError: a part cannot be read, or there is no text.
            StorageError: a file cannot be written.
        """
        groups = list(self._groups())
        written, files = self._write_groups(groups)
        written = written.plus(Written(dropped=self.corpus.dropped))
        if written.passages == 0:
            for file in files:
                file.unlink()
                file.with_suffix(_COUNTS).unlink()
            raise self._no_text(written)
        with atomic_open(self.path) as stream:
            for file in files:
                with file.open("rb") as group_stream:
                    shutil.copyfileobj(group_stream, stream)
        return written

    def _groups(self) -> Iterator[list[Part]]:
        """Yield neighbouring parts of some megabytes together."""
        group, size = list[Part](), 0
        for part in self.corpus.parts:
            group.append(part)
            size += part.size
            if size >= _GROUP_BYTES or len(group) == _GROUP_PARTS:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _write_groups(self, groups: Sequence[Sequence[Part]]) -> tuple[Written, list[Path]]:
        written, files = Written(), list[Path]()
        total, begun = sum(part.size for group in groups for part in group), 0
        with _own_words():
            for group in groups:
                files.append(self.path.with_name(f"{self._digest(group)}.passages"))
                place = _Place(self.tell, begun, sum(part.size for part in group), total, written.documents)
                written = written.plus(self._write_group(group, files[-1], place))
                begun += place.size
        self.tell(Progress("read", total, total, "bytes", f"{format_count(written.documents)} documents"))
        return written, files

    def _digest(self, group: Sequence[Part]) -> str:
        """Return the digest of everything that the passages of a group depend on."""
        keys = {key: value for key, value in asdict(self.read).items() if key != "stall_seconds"}
        facts = [_VERSION, keys, self.tokenizer.fingerprint, self.longest, [asdict(part) for part in group]]
        return digest_bytes(json.dumps(facts, sort_keys=True, default=str).encode())

    def _write_group(self, group: Sequence[Part], file: Path, place: _Place) -> Written:
        """Write the passages of some parts, and then their counts, unless an earlier call has."""
        counts = file.with_suffix(_COUNTS)
        if counts.is_file() and file.is_file():
            return Written(**read_json(counts))
        documents = passages = done = 0
        paths, dropped = self.read.paths, Counter[str]()
        folder = f"{paths[0].rstrip('/')}/" if len(paths) == 1 else ""
        with atomic_open(file) as stream:
            for document in chain.from_iterable(read_part(part, self.read) for part in group):
                if isinstance(document, Dropped):
                    dropped[document.rule] += 1
                    continue
                documents += 1
                done += len(document.text)  # characters: about bytes, and packed files hold more
                place.told(done, documents)
                whole = document.text.encode("utf-8", "replace").decode()  # lone surrogates are no characters
                for text in passages_of(whole, self.tokenizer, self.longest):
                    name = document.id.removeprefix(folder)
                    line = json.dumps({"document": name, "text": text}, ensure_ascii=False)
                    stream.write(line.encode() + b"\n")
                    passages += 1
        written = Written(documents, passages, dict(sorted(dropped.items())))
        atomic_write_json(counts, asdict(written))
        return written

    def _no_text(self, written: Written) -> DataError:
        left_out = ", ".join(f"{count} by {rule}" for rule, count in sorted(written.dropped.items()))
        return DataError(
            f"the corpus holds no text: {written.documents} documents, left out {left_out or 'none'}",
            where=", ".join(self.read.paths) or self.read.source,
            remedy="name a folder or file with text; source=... says how it is read, text_key=... which key",
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a group begins among all groups to write, in bytes and documents, and the sizes of both."""

    tell: Tell
    begun: int
    size: int
    total: int
    documents: int

    def told(self, done: int, documents: int) -> None:
        """Show that so many bytes and documents of the group are done."""
        count = format_count(self.documents + documents)
        at = self.begun + min(done, self.size)
        self.tell(Progress("read", at, self.total, "bytes", f"{count} documents"))


def read_passages(content: bytes) -> list[Passage]:
    """Return the passages of a file's content."""
    return [Passage(**json.loads(line)) for line in content.splitlines()]


def passages_of(text: str, tokenizer: Tokenizer, longest: int) -> list[str]:
    """Cut a document into passages of at most ``longest`` ids.

    A section begins at a heading (``# ...`` between empty lines) and stays whole where it fits. Each
    passage begins with the document's title, its first heading; a passage that continues a section
    repeats the section's heading. Without them a piece often does not name its subject. A text without
    headings is `cut`.
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
    """Return the text before the first heading, if there is any, and each heading with its text."""
    begins = [0, *(found.start() for found in _HEADING.finditer(text)), len(text)]
    return [text[begin:end] for begin, end in pairwise(begins) if begin < end]


def _long_section(section: str, tokenizer: Tokenizer, room: int) -> list[str]:
    """Cut a section; pieces after the first begin with its heading."""
    heading = _HEADING.match(section)
    named = _fitting(heading[0], tokenizer, room) if heading else ""
    first, *others = cut(section, tokenizer, room - _size(named, tokenizer)) or [""]
    return [first, *(f"{named}{other}" for other in others)]


def _fitting(heading: str, tokenizer: Tokenizer, longest: int) -> str:
    """Return a heading as a line, or nothing if it takes more than a quarter of a passage."""
    line = f"{heading}\n"
    return line if 4 * _size(line, tokenizer) <= longest else ""


def _size(text: str, tokenizer: Tokenizer) -> int:
    return _sizes([text], tokenizer)[0]


def cut(text: str, tokenizer: Tokenizer, longest: int) -> list[str]:
    """Cut a text into pieces of at most ``longest`` ids.

    It is cut between lines; within a line that is too long, between words or Chinese sentences; within a
    word that is too long, between ids.
    """
    pieces = list[str]()
    lines = text.splitlines(keepends=True)
    for line, size in zip(lines, _sizes(lines, tokenizer), strict=True):
        pieces += _words(line, tokenizer, longest) if size > longest else [line]
    passages, current, held = list[str](), list[str](), 0
    for piece, size in zip(pieces, _sizes(pieces, tokenizer), strict=True):
        if current and held + size > longest:
            passages.append("".join(current))
            current, held = [], 0
        current.append(piece)
        held += size
    passages.append("".join(current))
    return [passage.strip() for passage in passages if passage.strip()]


def _words(line: str, tokenizer: Tokenizer, longest: int) -> Iterator[str]:
    """Yield the words of a line, those that are too long in pieces."""
    words = _PIECE.findall(line)
    for word, size in zip(words, _sizes(words, tokenizer), strict=True):
        if size <= longest:
            yield word
        else:
            starts = tokenizer.places(word)[::longest, 0].tolist()
            borders = sorted({0, *starts, len(word)})
            yield from (word[begin:end] for begin, end in pairwise(borders))


def _sizes(texts: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    return [len(ids) for ids in tokenizer.encode_batch(texts)] if texts else []


@contextmanager
def _own_words() -> Iterator[None]:
    """Rename the configuration keys of preparation in errors to the options of this command."""
    try:
        yield
    except DataError as error:
        where, remedy = (
            (said or "").replace("data.paths", "corpus").replace("data.", "")
            for said in (error.where, error.remedy)
        )
        cause = error.cause.replace("data.paths", "corpus")
        raise error.recast(DataError, where=where, remedy=remedy, cause=cause) from error
