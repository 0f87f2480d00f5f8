"""Parallel corpora: TSV and CSV, JSON lines, Moses files side by side, TMX, gettext catalogues."""

from __future__ import annotations

import itertools
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

from distllm.config.schema_read import ReadConfig
from distllm.data.read.lines import delimited_records, json_records, named, text_of
from distllm.data.read.part import Part
from distllm.data.read.streams import DamagedFile, decode, local_copy, open_bytes, read_lines, read_whole
from distllm.data.records import Document, Dropped, excerpt
from distllm.errors import DataError
from distllm.extras import require

SOURCE, TARGET = "source", "target"
PROMPT, CHOSEN, REJECTED = "prompt", "chosen", "rejected"
_XML_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"


def read_pairs(file: Path, part: Part, read: ReadConfig) -> Iterator[Document | Dropped]:
    """Yield the pairs of a file, in the format that its name implies.

    Rules of refusal: those of the format, ``unpaired`` (one side is missing or empty).

    Raises:
        DataError: a Moses file has no partner, or not as many lines.
        DamagedFile: the file cannot be read to its end.
    """
    name = file.name.lower()
    if read.languages:
        read = replace(read, language=read.languages[0])
    if _has(name, ".jsonl", ".ndjson"):
        yield from _of_records(json_records(file, part, read), read)
    elif _has(name, ".tsv", ".csv"):
        yield from _of_records(delimited_records(file, part, read, read.fields), read)
    elif _has(name, ".tmx"):
        yield from _of_tmx(file, part, read)
    elif _has(name, ".po", ".mo"):
        yield from _of_gettext(file, part, read)
    else:
        yield from _of_moses(file, part, read)


def read_preferences(file: Path, part: Part, read: ReadConfig) -> Iterator[Document | Dropped]:
    """Yield prompts with the preferred and the other answer, from JSON lines with these keys.

    Rules of refusal: those of JSON, ``incomplete`` (one of the three is missing or empty).
    """
    for record in json_records(file, part, read):
        if isinstance(record, Dropped):
            yield record
            continue
        name, content = record
        texts = {key: content.get(key) for key in (PROMPT, CHOSEN, REJECTED)}
        lacking = [key for key, text in texts.items() if not isinstance(text, str) or not text.strip()]
        if lacking:
            reason = f"no text in {', '.join(lacking)}; it has {', '.join(map(repr, content))}"
            if lists := [key for key in lacking if isinstance(texts[key], list)]:
                reason += f", and lists of messages are no text: {', '.join(lists)}"
            yield Dropped(name, "incomplete", reason, excerpt(str(content)))
        else:
            yield named(name, {key: str(text) for key, text in texts.items()}, content, read)


def is_second_side(path: str, read: ReadConfig) -> bool:
    """Whether ``path`` is the target side of a Moses corpus, which its source side brings along."""
    return len(read.languages) == 2 and _stem(path, read.languages[1]) is not None


def _has(name: str, *suffixes: str) -> bool:
    return any(f"{suffix}." in f"{name}." for suffix in suffixes)


def _of_records(records: Iterator[object], read: ReadConfig) -> Iterator[Document | Dropped]:
    for record in records:
        if isinstance(record, Dropped):
            yield record
            continue
        assert isinstance(record, tuple)
        name, content = record
        sides = [text_of(name, content, key) for key in read.fields]
        refused = next((side for side in sides if isinstance(side, Dropped)), None)
        if refused is not None:
            yield refused
            continue
        source, target = (str(side) for side in sides)
        pair = _pair(name, source, target, read)
        yield named(name, dict(pair.fields), content, read) if isinstance(pair, Document) else pair


def _pair(name: str, source: str, target: str, read: ReadConfig) -> Document | Dropped:
    if not source.strip() or not target.strip():
        return Dropped(name, "unpaired", "one side is empty", source or target)
    return Document(name, {SOURCE: source, TARGET: target}, read.language)


def _of_moses(file: Path, part: Part, read: ReadConfig) -> Iterator[Document | Dropped]:
    """Line n of ``corpus.xx`` and line n of ``corpus.yy`` are a pair."""
    if len(read.languages) != 2 or (stem := _stem(part.path, read.languages[0])) is None:
        raise DataError(
            f"{part.name} is in none of the known formats of pairs",
            where="data.paths",
            remedy="give .tsv, .csv, .jsonl, .tmx, .po or .mo files; for Moses files corpus.en and corpus.de "
            "set data.languages=[en,de]",
        )
    partner = stem.replace("\0", read.languages[1])
    with local_copy(partner, read) as other:
        if not other.is_file():
            raise DataError(
                f"{part.name} has no partner {partner}",
                where=partner,
                remedy="add it, or correct data.languages",
            )
        with open_bytes(file) as left, open_bytes(other) as right:
            limit = read.max_document_bytes
            lines = itertools.zip_longest(read_lines(left, limit), read_lines(right, limit))
            for number, (first, second) in enumerate(lines, 1):
                if first is None or second is None:
                    raise DataError(
                        f"{part.name} and {partner} differ in their number of lines, from line {number}",
                        where=partner,
                        remedy="align the two files",
                    )
                yield _moses_pair(f"{part.name}@{first[0]}", first[1], second[1], read)


def _moses_pair(name: str, left: bytes | None, right: bytes | None, read: ReadConfig) -> Document | Dropped:
    if left is None or right is None:
        return Dropped(name, "line_too_long", f"more than data.max_document_bytes={read.max_document_bytes}")
    source, target = decode(left, name, read), decode(right, name, read)
    if isinstance(source, Dropped):
        return source
    return target if isinstance(target, Dropped) else _pair(name, source.strip(), target.strip(), read)


def _stem(path: str, language: str) -> str | None:
    """Return ``path`` with a NUL in place of its language, if it ends in that."""
    folder, separator, name = path.rpartition("/")
    parts = name.split(".")
    for place in range(len(parts) - 1, 0, -1):
        if parts[place] == language:
            return f"{folder}{separator}{'.'.join([*parts[:place], chr(0), *parts[place + 1 :]])}"
    return None


def _of_tmx(file: Path, part: Part, read: ReadConfig) -> Iterator[Document | Dropped]:
    """Translation units of a TMX 1.4 memory, parsed as it streams."""
    wanted = [language.lower() for language in read.languages]
    number = 0
    body: ElementTree.Element | None = None
    try:
        with open_bytes(file) as stream:
            bounded = _Bounded(stream, read.max_document_bytes)
            for event, unit in ElementTree.iterparse(bounded, events=("start", "end")):
                if event == "start" and unit.tag == "body":
                    body = unit
                if event == "start" or unit.tag != "tu":
                    continue
                number += 1
                yield _tmx_pair(f"{part.name}#{unit.get('tuid') or number}", _tmx_sides(unit), wanted, read)
                bounded.begin()
                if body is not None:
                    body.clear()  # the units that are done
    except ElementTree.ParseError as error:
        raise DamagedFile(f"not XML: {error}") from error


def _tmx_sides(unit: ElementTree.Element) -> dict[str, str]:
    """Return the segments of a translation unit by language."""
    return {
        (variant.get(_XML_LANGUAGE) or variant.get("lang") or "").lower(): "".join(segment.itertext())
        for variant in unit.iter("tuv")
        if (segment := variant.find("seg")) is not None
    }


class _Bounded:
    """A stream that limits the bytes between two calls of ``begin`` to ``limit``."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream, self._limit, self._read = stream, limit, 0

    def begin(self) -> None:
        """Start a new record, to which the limit applies."""
        self._read = 0

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes.

        Raises:
            DamagedFile: what has begun does not end within the limit.
        """
        content = self._stream.read(size)
        self._read += len(content)
        if self._read > self._limit:
            raise DamagedFile(f"a unit of more than data.max_document_bytes={self._limit}")
        return content


def _tmx_pair(name: str, sides: dict[str, str], wanted: list[str], read: ReadConfig) -> Document | Dropped:
    if wanted:
        texts = [
            next((text for code, text in sides.items() if code == want or code.startswith(f"{want}-")), "")
            for want in wanted
        ]
    else:
        texts = list(sides.values())
    if len(texts) != 2:
        return Dropped(name, "unpaired", f"it has {', '.join(sides) or 'no languages'}; set data.languages")
    return _pair(name, texts[0].strip(), texts[1].strip(), read)


def _of_gettext(file: Path, part: Part, read: ReadConfig) -> Iterator[Document | Dropped]:
    """Messages of a gettext catalogue and their translations; fuzzy ones are left out.

    A message with a plural is two: its singular with the first form of the translation, its plural
    with the last.
    """
    polib = require("polib", "reading gettext catalogues")
    content = read_whole(file, part.name, read)
    if isinstance(content, Dropped):
        yield content
        return
    try:
        with tempfile.TemporaryDirectory(prefix="distllm-") as directory:
            unpacked = Path(directory) / "catalogue"
            unpacked.write_bytes(content)
            if _has(file.name.lower(), ".mo"):
                messages = list(polib.mofile(str(unpacked)))
            else:
                messages = polib.pofile(str(unpacked), encoding=read.encoding).translated_entries()
    except (OSError, UnicodeDecodeError, ValueError, struct.error) as error:
        reason = str(error).replace(str(unpacked), part.name)
        raise DamagedFile(f"not a gettext catalogue: {reason}") from error
    sides = [side for entry in messages for side in _gettext_sides(entry)]
    for number, (source, target) in enumerate(sides):
        yield _pair(f"{part.name}#{number}", source, target, read)


def _gettext_sides(entry: Any) -> list[tuple[str, str]]:
    """Return message and translation: none if it is not translated, two if it has a plural."""
    if forms := [form for _, form in sorted(entry.msgstr_plural.items()) if form]:
        return [(entry.msgid, forms[0]), (entry.msgid_plural, forms[-1])]
    return [(entry.msgid, entry.msgstr)] if entry.msgstr else []
