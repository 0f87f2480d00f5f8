"""Web archives: WARC files of pages as they were sent, and WET files of their extracted text."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distllm.config.schema_read import ReadConfig
from distllm.data.read.part import Part
from distllm.data.read.plain import main_text
from distllm.data.read.streams import DamagedFile, decode
from distllm.data.records import Document, Dropped
from distllm.errors import DistllmError
from distllm.extras import require

_HTML = ("text/html", "application/xhtml+xml")
_GZIP = b"\x1f\x8b"
_ANY_HEADER = 32  # tells zlib to accept the header of gzip and of deflate
_UNKNOWN_ENCODINGS = ("br", "zstd", "compress")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;[^\r\n]*)?\r\n")


def read_warc(file: Path, part: Part, read: ReadConfig) -> Iterator[Document | Dropped]:
    """Yield a document for every HTML response (WARC) and every conversion (WET) of an archive.

    The id is the record's own (``WARC-Record-ID``). Rules of refusal: ``too_large``,
    ``damaged_record`` (its bytes do not match its digest, or cannot be decompressed), ``not_html``,
    ``http_error``, ``no_main_text``, ``undecodable`` (a character or content encoding that is not known).

    Raises:
        DamagedFile: the file is truncated, or is not a web archive.
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
    except DistllmError:
        raise  # a missing package or an unknown encoding, which another archive would meet too
    except Exception as error:  # the reader lets errors of every decompressor through
        raise DamagedFile(f"{type(error).__name__}: {error}") from error
    if not seen and file.stat().st_size:
        raise DamagedFile("it holds no response and no conversion record")


def _document(record: Any, part: Part, read: ReadConfig, warc: Any) -> Document | Dropped:
    name = str(record.record_id or f"{part.name}@{record.stream_pos}")
    if record.content_length > read.max_document_bytes:
        return Dropped(name, "too_large", f"over data.max_document_bytes={read.max_document_bytes}")
    if "WARC-Block-Digest" in record.headers and not record.verify_block_digest():
        return Dropped(name, "damaged_record", "its bytes do not match its block digest")
    content = record.reader.read()
    if record.record_type == warc.WarcRecordType.conversion:
        text = decode(content, name, read)
        return text if isinstance(text, Dropped) else Document.from_text(name, text, read.language)
    status, kind = record.http_headers.status_code if record.http_headers else None, record.http_content_type
    if status is not None and status != 200:
        return Dropped(name, "http_error", f"status {status}")
    if kind not in _HTML:
        return Dropped(name, "not_html", f"content type {kind}")
    page = _decoded(content, dict(record.http_headers or ()), name, read)
    if isinstance(page, Dropped):
        return page
    text = main_text(page)
    return Document.from_text(name, text, read.language) if text else Dropped(name, "no_main_text", "no text")


def _decoded(body: bytes, headers: Mapping[str, str], name: str, read: ReadConfig) -> bytes | Dropped:
    """Return the page of an HTTP response, without transfer and content encoding.

    Many archives contain a decoded body with headers that say otherwise, so the bytes decide.
    """
    fields = {key.lower(): value.lower() for key, value in headers.items()}
    if "chunked" in fields.get("transfer-encoding", ""):
        body = _joined_chunks(body)
    encoding = fields.get("content-encoding", "")
    if body.startswith(_GZIP) or (encoding == "deflate" and not body.lstrip().startswith(b"<")):
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | _ANY_HEADER)
        try:
            body = unpacker.decompress(body, read.max_document_bytes + 1)
        except zlib.error as error:
            return Dropped(name, "damaged_record", f"it cannot be decompressed: {error}")
        if len(body) > read.max_document_bytes:
            return Dropped(name, "too_large", f"over data.max_document_bytes={read.max_document_bytes}")
        if not unpacker.eof:
            return Dropped(name, "damaged_record", "its compressed page is truncated")
    elif encoding in _UNKNOWN_ENCODINGS and not body.lstrip().startswith(b"<"):
        return Dropped(name, "undecodable", f"content encoding {encoding}")
    return body


def _joined_chunks(body: bytes) -> bytes:
    """Return the content of a chunked body (RFC 9112, section 7.1), or the body itself if it is not one."""
    content, at = bytearray(), 0
    while size := _CHUNK_SIZE.match(body, at):
        length = int(size[1], 16)
        if length == 0:
            return bytes(content)
        content += body[size.end() : size.end() + length]
        at = size.end() + length + len(b"\r\n")
    return body
