"""Files of one document each: plain text, HTML, EPUB and PDF."""

from __future__ import annotations

import io
import lzma
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from distllm.config.schema_read import ReadConfig
from distllm.data.read.part import Part
from distllm.data.read.streams import DamagedFile, decode, read_whole
from distllm.data.records import Document, Dropped
from distllm.extras import require

_DOCTYPE = re.compile(r"<!(DOCTYPE|ENTITY)", re.IGNORECASE)
_CONTAINER = "META-INF/container.xml"
_ENCRYPTED = 0x1
_MANY_TAGS = 4096
_DEEPEST = 512
"""Levels of elements that browsers nest. Finding the main text takes the square of the depth and more."""
_NO_BOOK = (
    zipfile.BadZipFile, ElementTree.ParseError, KeyError, EOFError, NotImplementedError, zlib.error,
    lzma.LZMAError,
)  # fmt: skip


def read_text(file: Path, part: Part, read: ReadConfig) -> Iterator[Document | Dropped]:
    """Yield the file as one document.

    Rules of refusal: ``unreadable``, ``too_large``, ``not_text``, ``undecodable``.
    """
    content = read_whole(file, part.name, read)
    text = content if isinstance(content, Dropped) else decode(content, part.name, read)
    yield text if isinstance(text, Dropped) else Document.from_text(part.name, text, read.language)


def read_html(file: Path, part: Part, read: ReadConfig) -> Iterator[Document | Dropped]:
    """Yield the main text of an HTML page.

    Rules of refusal: ``unreadable``, ``too_large``, ``no_main_text``.
    """
    content = read_whole(file, part.name, read)
    if isinstance(content, Dropped):
        yield content
        return
    text = main_text(content)
    if text:
        yield Document.from_text(part.name, text, read.language)
    else:
        yield Dropped(part.name, "no_main_text", "nothing but navigation, scripts and mark-up")


def main_text(page: bytes) -> str:
    """Return the text of an HTML page without navigation and boilerplate (resiliparse).

    A page that nests more elements than a browser would keeps its whole text.
    """
    require("resiliparse", "reading HTML")
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse(bytes_to_str(page, detect_encoding(page, html5_compatible=True) or "utf-8"))
    is_too_deep = page.count(b"<") > _MANY_TAGS and _is_too_deep(tree)
    return str(extract_plain_text(tree, main_content=not is_too_deep, alt_texts=False)).strip()


def _is_too_deep(tree: Any) -> bool:
    from resiliparse.parse.html import traverse_dom

    class TooDeep(Exception):
        """Ends the traversal."""

    def check(context: Any) -> None:
        if context.depth > _DEEPEST:
            raise TooDeep

    try:
        traverse_dom(tree.document.document_element, check, elements_only=True)
    except TooDeep:
        return True
    return False


def read_pdf(file: Path, part: Part, read: ReadConfig) -> Iterator[Document | Dropped]:
    """Yield the text of all pages of a PDF file.

    Rules of refusal: ``unreadable``, ``too_large``, ``encrypted``, ``no_text`` (scanned pages).

    Raises:
        DamagedFile: it is no PDF or cannot be read to its end.
    """
    pypdf = require("pypdf", "reading PDF")
    content = read_whole(file, part.name, read)
    if isinstance(content, Dropped):
        yield content
        return
    pages: list[str] = []
    size = 0
    try:
        book = pypdf.PdfReader(io.BytesIO(content))
        if book.is_encrypted:
            yield Dropped(part.name, "encrypted", "it needs a password")
            return
        for page in book.pages:
            pages.append(page.extract_text())
            size += len(pages[-1])
            if size > read.max_document_bytes:
                yield Dropped(
                    part.name, "too_large", f"over data.max_document_bytes={read.max_document_bytes}"
                )
                return
    except Exception as error:  # pypdf lets many kinds of errors of a damaged file through
        raise DamagedFile(f"{type(error).__name__}: {error}") from error
    text = "\n\n".join(pages)
    if text.strip():
        yield Document.from_text(part.name, text, read.language)
    else:
        yield Dropped(part.name, "no_text", f"{len(pages)} pages without text; they may be scanned")


def read_epub(file: Path, part: Part, read: ReadConfig) -> Iterator[Document | Dropped]:
    """Yield the text of an EPUB book, its chapters in reading order.

    Rules of refusal: ``too_large`` (also of what a small file would unpack to), ``encrypted``,
    ``no_main_text``.

    Raises:
        DamagedFile: it is no EPUB, or it is cut.
    """
    try:
        with zipfile.ZipFile(file) as book:
            if sum(entry.file_size for entry in book.infolist()) > read.max_document_bytes:
                yield Dropped(
                    part.name, "too_large", f"over data.max_document_bytes={read.max_document_bytes}"
                )
                return
            if any(entry.flag_bits & _ENCRYPTED for entry in book.infolist()):
                yield Dropped(part.name, "encrypted", "it needs a password")
                return
            chapters = [main_text(book.read(name)) for name in _spine(book)]
    except _NO_BOOK as error:
        raise DamagedFile(f"not an EPUB book: {error}") from error
    text = "\n\n".join(chapter for chapter in chapters if chapter)
    if text:
        yield Document.from_text(part.name, text, read.language)
    else:
        yield Dropped(part.name, "no_main_text", "its chapters hold no text")


def _spine(book: zipfile.ZipFile) -> list[str]:
    """Return the names of the chapters in reading order, each once (EPUB 3.3, section 5.7).

    The standard allows each chapter once; a book that repeats one without end would fill the memory.
    """
    roots = [node for node in _xml(book, _CONTAINER).iter() if node.tag.endswith("}rootfile")]
    if not roots:
        raise KeyError(f"{_CONTAINER} names no package")
    package = roots[0].attrib["full-path"]
    tree = _xml(book, package)
    base = posixpath.dirname(package)
    items = {
        node.attrib["id"]: posixpath.normpath(posixpath.join(base, unquote(node.attrib["href"])))
        for node in tree.iter()
        if node.tag.endswith("}item")
    }
    chapters = (items[node.attrib["idref"]] for node in tree.iter() if node.tag.endswith("}itemref"))
    return list(dict.fromkeys(chapters))


def _xml(book: zipfile.ZipFile, name: str) -> ElementTree.Element:
    """Parse a member; a document type is refused, so that no entity can grow."""
    content = book.read(name).decode("utf-8", errors="replace")
    if _DOCTYPE.search(content):
        raise ElementTree.ParseError(f"{name} declares a document type")
    return ElementTree.fromstring(content)
