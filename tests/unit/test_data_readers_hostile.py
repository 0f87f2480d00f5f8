"""Input of the richer formats that is malformed, boundless or merely unusual."""

import gzip
import json
import sys
import time
import tracemalloc
import zipfile
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distllm.config.schema_read import ReadConfig
from distllm.data.read import find_parts, read_part
from distllm.data.records import Document, Dropped
from distllm.errors import DataError, MissingDependency


def items_of(source, *paths, **keys):
    config = ReadConfig(source=source, paths=tuple(map(str, paths)), **keys)
    parts, dropped = find_parts(source, config)
    return [*dropped, *(item for part in parts for item in read_part(part, config))]


def rules(items):
    return [item.rule for item in items if isinstance(item, Dropped)]


CHAPTER = (
    "<html><body><main><p>It was a dark and stormy night; the rain fell in torrents.</p></main></body></html>"
)
CONTAINER = '<container xmlns="c"><rootfiles><rootfile full-path="O/p/b.opf"/></rootfiles></container>'
PACKAGE = """<package xmlns="o"><manifest><item id="one" href="../ch%201.xhtml"/></manifest>
<spine><itemref idref="one"/></spine></package>"""


def write_book(path, container=CONTAINER):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("META-INF/container.xml", container)
        book.writestr("O/p/b.opf", PACKAGE)
        book.writestr("O/ch 1.xhtml", CHAPTER * 50)


def test_chapters_are_found_by_quoted_names_above_their_package(tmp_path):
    write_book(tmp_path / "a.epub")
    (item,) = items_of("epub", tmp_path)
    assert "dark and stormy" in item.text


def test_a_book_that_cannot_be_opened_is_named(tmp_path):
    book = tmp_path / "a.epub"
    write_book(book, CONTAINER.replace("rootfile ", "elsewhere "))
    with pytest.raises(DataError, match="names no package"):
        items_of("epub", book)
    write_book(book)
    content = bytearray(book.read_bytes())
    chapter = content.index(b"O/ch 1.xhtml") + len("O/ch 1.xhtml")
    content[chapter : chapter + 20] = b"\xff" * 20
    book.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.epub is damaged"):
        items_of("epub", book)
    write_book(book)
    content = bytearray(book.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.index(mark)
        content[at + flags] |= 1
    book.write_bytes(content)
    assert rules(items_of("epub", book)) == ["encrypted"]


UNIT = '<tu><tuv xml:lang="en"><seg>{}</seg></tuv><tuv xml:lang="de"><seg>{}</seg></tuv></tu>\n'


@pytest.mark.slow
def test_a_unit_of_a_memory_without_end_is_never_held_and_those_that_are_done_are_let_go(tmp_path):
    path = tmp_path / "a.tmx"
    path.write_text(f"<tmx><body>{UNIT.format('house', 'Haus') * 20000}</body></tmx>")
    tracemalloc.start()
    pairs = sum(isinstance(item, Document) for item in iter(items_read_one_by_one(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pairs == 20000
    assert peak < 3 << 20
    path.write_text(
        f"<tmx><body>{UNIT.format('house', 'Haus')}{UNIT.format('x' * (4 << 20), 'y')}</body></tmx>"
    )
    with pytest.raises(DataError, match=r"a unit of more than data\.max_document_bytes=100000"):
        items_of("pairs", path, max_document_bytes=100000)
    items = items_of("pairs", path, max_document_bytes=100000, on_bad_file="skip")
    assert [item.fields["source"] for item in items if isinstance(item, Document)] == ["house"]
    assert rules(items) == ["damaged_file"]


def items_read_one_by_one(path):
    config = ReadConfig(source="pairs", paths=(str(path),))
    for part in find_parts("pairs", config)[0]:
        yield from read_part(part, config)


PO = """msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"

msgid "one file"
msgid_plural "%d files"
msgstr[0] "eine Datei"
msgstr[1] "%d Dateien"

msgid "not yet"
msgid_plural "not yet at all"
msgstr[0] ""
msgstr[1] ""
"""


def test_catalogues_may_be_compressed_and_plurals_are_pairs(tmp_path):
    (tmp_path / "a.po.gz").write_bytes(gzip.compress(PO.encode()))
    items = items_of("pairs", tmp_path)
    assert [tuple(item.fields.values()) for item in items] == [
        ("one file", "eine Datei"),
        ("%d files", "%d Dateien"),
    ]
    assert rules(items_of("pairs", tmp_path, max_document_bytes=50)) == ["too_large"]
    (tmp_path / "a.po.gz").write_bytes(b"no catalogue")
    with pytest.raises(DataError, match=r"a\.po\.gz is damaged: not a gettext catalogue") as error:
        items_of("pairs", tmp_path)
    assert "distllm-" not in error.value.cause


def test_a_text_of_a_parquet_file_may_be_too_large(tmp_path):
    table = pa.table({"text": ["one", "x" * 5000, "two", None], "id": [1, 2, 3, 4]})
    pq.write_table(table, tmp_path / "a.parquet")
    items = items_of("parquet", tmp_path, max_document_bytes=1000, id_key="id")
    assert [(item.id, item.text) for item in items if isinstance(item, Document)] == [
        ("1", "one"),
        ("3", "two"),
    ]
    assert rules(items) == ["too_large", "text_not_string"]
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    assert rules(items_of("parquet", tmp_path)) == ["text_not_string"] * 2


@pytest.mark.parametrize(
    "paragraphs",
    [["a string"], [{"context": "c", "qas": {"question": "q"}}], [{"context": "c", "qas": ["q"]}]],
)
def test_questions_of_another_shape_are_refused(tmp_path, paragraphs):
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"title": "T", "paragraphs": paragraphs}]}))
    assert rules(items_of("qa", tmp_path)) == ["no_question"]


def test_json_that_is_nested_too_deep_is_damaged(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    for source in ("qa", "chat"):
        with pytest.raises(DataError, match="not JSON"):
            items_of(source, tmp_path)


@pytest.mark.parametrize(
    "answers",
    [
        {"text": 5, "answer_start": 3},
        {"text": "France", "answer_start": 12},
        {"text": ["France"], "answer_start": 12},
        {"text": ["France"]},
        [{"text": "France", "answer_start": True}],
    ],
)
def test_answers_of_odd_shapes_are_read_or_refused(tmp_path, answers):
    record = {"context": "Paris is in France.", "question": "Where?", "answers": answers}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    (item,) = items_of("qa", tmp_path)
    if isinstance(item, Document):
        (answer,) = json.loads(item.fields["answers"])
        assert (answer["text"], answer["start"]) in [("France", 12), ("France", None)]
    else:
        assert item.rule == "wrong_answer"


@pytest.mark.parametrize(
    "answers", [[{"text": None}], [{}], [[]], {"text": [{}]}, True, [{"text": "ris", "answer_start": -17}]]
)
def test_answers_that_are_no_text_are_refused_one_by_one(tmp_path, answers):
    bad = {"context": "Paris is in France.", "question": "Where?", "answers": answers}
    good = {**bad, "answers": "France"}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(bad)}\n{json.dumps(good)}\n")
    items = items_of("qa", tmp_path)
    assert rules(items) == ["wrong_answer"]
    assert len(items) == 2


def test_a_book_that_repeats_a_chapter_has_it_once(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.epub", "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("META-INF/container.xml", CONTAINER)
        book.writestr("O/p/b.opf", PACKAGE.replace('<itemref idref="one"/>', '<itemref idref="one"/>' * 5000))
        book.writestr("O/ch 1.xhtml", CHAPTER)
    (item,) = items_of("epub", tmp_path)
    assert item.text.count("dark and stormy") == 1


def test_a_page_that_nests_without_end_takes_no_longer_than_its_size(tmp_path):
    (tmp_path / "a.html").write_text("<div>" * 30_000 + "hello world")
    started = time.process_time()
    (item,) = items_of("html", tmp_path)
    assert item.text == "hello world"
    assert time.process_time() - started < 5  # a minute, when the main text is looked for


def http_record(body, **headers):
    lines = ["HTTP/1.1 200 OK", "Content-Type: text/html", *(f"{k}: {v}" for k, v in headers.items())]
    block = ("\r\n".join(lines) + "\r\n\r\n").encode() + body
    head = ["WARC/1.0", "WARC-Type: response", "Content-Type: application/http; msgtype=response"]
    return ("\r\n".join([*head, f"Content-Length: {len(block)}"]) + "\r\n\r\n").encode() + block + b"\r\n\r\n"


def test_responses_are_decoded_as_their_bytes_say(tmp_path):
    page = CHAPTER.encode()
    chunked = b"%x\r\n%s\r\n1\r\n \r\n0\r\n\r\n" % (len(page), page)
    zipped = {"Content-Encoding": "gzip"}
    (tmp_path / "a.warc").write_bytes(
        http_record(gzip.compress(page), **zipped)
        + http_record(page, **zipped)
        + http_record(zlib.compress(page), **{"Content-Encoding": "deflate"})
        + http_record(chunked, **{"Transfer-Encoding": "chunked"})
        + http_record(page, **{"Transfer-Encoding": "chunked"})
        + http_record(gzip.compress(b"x" * 3_000_000), **zipped)
        + http_record(gzip.compress(page)[:20] + b"\xff" * 20, **zipped)
        + http_record(b"\x8b\x02", **{"Content-Encoding": "br"})
    )
    items = items_of("warc", tmp_path, max_document_bytes=1 << 20)
    documents = [item.text for item in items if isinstance(item, Document)]
    assert len(documents) == 5
    assert len(set(documents)) == 1
    assert rules(items) == ["too_large", "damaged_record", "undecodable"]


def test_an_archive_is_not_called_damaged_for_a_package_that_is_missing(tmp_path, monkeypatch):
    (tmp_path / "a.warc").write_bytes(http_record(CHAPTER.encode()))
    monkeypatch.setitem(sys.modules, "resiliparse", None)
    with pytest.raises(MissingDependency, match="reading HTML"):
        items_of("warc", tmp_path, on_bad_file="skip")
