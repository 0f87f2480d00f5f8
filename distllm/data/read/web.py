"""Web archives: WARC files of pages as they came, and WET files of their extracted text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distllm.config.schema_read import ReadConfig
from distllm.data.read.part import Part
from distllm.data.read.plain import main_text
from distllm.data.read.streams import DamagedFile, decode
from distllm.data.records import Document, Dropped
from distllm.extras import require

_HTML = ("text/html", "application/xhtml+xml")


def read_warc(file: Path, part: Part, read: ReadConfig) -> Iterator[Document | Dropped]:
    """Yield a document for every HTML response (WARC) and every conversion (WET) of an archive.

    The id is the record's own (``WARC-Record-ID``). Rules of refusal: ``too_large``,
    ``damaged_record`` (its digest is not that of its bytes), ``not_html``, ``http_error``,
    ``no_main_text``, ``undecodable``.

    Raises:
        DamagedFile: the archive is cut, or is none.
    """
    warc = require("fastwarc.warc", "reading WARC")
    seen = 0
    kinds = warc.WarcRecordType.response | warc.WarcRecordType.conversion
    try:
        with file.open("rb") as stream:
            archive = warc.ArchiveIterator(stream, record_types=kinds, parse_http=True, verify_digests=False)
            for record in archive:
                seen += 1
                yield _document(record, part, read, warc)
    except Exception as error:  # the reader lets errors of every decompressor through
        raise DamagedFile(f"{type(error).__name__}: {error}") from error
    if not seen and file.stat().st_size:
        raise DamagedFile("it holds no response and no conversion record")


def _document(record: Any, part: Part, read: ReadConfig, warc: Any) -> Document | Dropped:
    name = str(record.record_id or f"{part.name}@{record.stream_pos}")
    if record.content_length > read.max_document_bytes:
        return Dropped(name, "too_large", f"over data.max_document_bytes={read.max_document_bytes}")
    if "WARC-Block-Digest" in record.headers and not record.verify_block_digest():
        return Dropped(name, "damaged_record", "its block digest is not that of its bytes")
    content = record.reader.read()
    if record.record_type == warc.WarcRecordType.conversion:
        text = decode(content, name, read)
        return text if isinstance(text, Dropped) else Document.of_text(name, text, read.language)
    status, kind = record.http_headers.status_code if record.http_headers else None, record.http_content_type
    if status is not None and status != 200:
        return Dropped(name, "http_error", f"status {status}")
    if kind not in _HTML:
        return Dropped(name, "not_html", f"content type {kind}")
    text = main_text(content)
    return Document.of_text(name, text, read.language) if text else Dropped(name, "no_main_text", "no text")
