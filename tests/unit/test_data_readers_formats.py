import struct
import tracemalloc
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import fields, items_of, rules

from distllm.config.schema_read import ReadConfig
from distllm.data.read import find_parts
from distllm.data.records import Document, Dropped
from distllm.errors import DataError


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "a.parquet"
    rows = {"body": [f"row {i}" for i in range(10)], "key": list(range(10)), "lang": ["de"] * 10}
    pq.write_table(pa.table(rows), path, row_group_size=3)
    return path


def test_parquet_is_read_by_row_group(table):
    whole = items_of("parquet", table, text_key="body")
    assert [item.text for item in whole] == [f"row {i}" for i in range(10)]
    assert whole[7].id == f"{table}#7"
    config = ReadConfig(source="parquet", paths=(str(table),), text_key="body")
    assert len(find_parts("p", config, part_bytes=1)[0]) == 4
    assert items_of("parquet", table, text_key="body", part_bytes=1) == whole
    named = items_of("parquet", table, text_key="body", id_key="key", language_key="lang")
    assert (named[3].id, named[3].language) == ("3", "de")


def test_parquet_without_the_column_names_those_there_are(table):
    with pytest.raises(DataError, match="no column 'text'") as error:
        items_of("parquet", table)
    assert "body, key, lang" in error.value.remedy


def test_a_cut_parquet_file_is_damaged(table):
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.parquet is damaged"):
        items_of("parquet", table, text_key="body", part_bytes=1)
    assert rules(items_of("parquet", table, text_key="body", on_bad_file="skip")) == ["damaged_file"]


def test_csv_has_a_row_of_names_quotes_and_lines_in_cells(tmp_path):
    (tmp_path / "a.csv").write_text(
        '\ufeffid,text\n1,"a, ""quoted""\nline"\n2\n3,plain,more\n', encoding="utf-8"
    )
    items = items_of("csv", tmp_path, id_key="id")
    assert [item.text for item in items if isinstance(item, Document)] == ['a, "quoted"\nline', "plain"]
    assert [item.id for item in items if isinstance(item, Document)] == ["1", "3"]
    assert rules(items) == ["wrong_columns"]
    (tmp_path / "b.tsv").write_text('text\nsays "no"\t\n')
    assert items_of("csv", tmp_path / "b.tsv")[0].text == 'says "no"'
    (tmp_path / "c.csv").write_text("a;text\n1;x\n")
    assert items_of("csv", tmp_path / "c.csv", delimiter=";")[0].text == "x"


def test_bad_csv_is_refused_row_by_row(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text\ngood\n\xff\xfe\n" + b"x" * 5000 + b"\nend\n")
    items = items_of("csv", tmp_path, max_document_bytes=1000)
    assert [item.text for item in items if isinstance(item, Document)] == ["good", "end"]
    assert rules(items) == ["undecodable", "record_too_long"]
    (tmp_path / "a.csv").write_bytes(b"te\0xt\n1\n")
    assert rules(items_of("csv", tmp_path)) == ["not_text"]


def test_a_row_of_a_table_without_end_is_never_held_in_memory(tmp_path):
    bomb = b'"' + b"x" * (8 << 20) + b'"\n'
    (tmp_path / "a.csv").write_bytes(b"text\nbefore\n" + bomb + b"after\n")
    (tmp_path / "b.csv").write_bytes(bomb + b"text\nnameless\n")
    tracemalloc.start()
    items = items_of("csv", tmp_path, max_document_bytes=1 << 17)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [item.text for item in items if isinstance(item, Document)] == ["before", "after"]
    assert rules(items) == ["record_too_long"] * 2
    assert [item.id.rpartition("#")[2] for item in items if isinstance(item, Dropped)] == ["3", "1"]
    assert peak < 4 << 20


PAGE = """<html><head><title>T</title><script>var x = 1;</script></head><body>
<nav><a href="/">Home</a><a href="/b">Other</a></nav>
<main><h1>Heading</h1><p>The text of the page, which is long enough to be taken for its main content.</p>
<p>A second paragraph says more about rivers and bridges, größer als gedacht.</p></main>
<footer>Imprint</footer></body></html>"""


def test_html_keeps_the_main_text(tmp_path):
    (tmp_path / "a.html").write_text(PAGE, encoding="utf-8")
    (tmp_path / "b.html").write_bytes(
        PAGE.replace("<head>", '<head><meta charset="latin-1">').encode("latin-1")
    )
    (tmp_path / "c.html").write_text("<html><script>x</script></html>")
    (tmp_path / "d.html").mkdir()
    (tmp_path / "style.css").write_text("p {}")
    items = items_of("html", tmp_path)
    for item in items[:2]:
        assert "main content" in item.text
        assert "größer" in item.text
        assert "var x" not in item.text
        assert "Imprint" not in item.text
    assert rules(items) == ["no_main_text"]


def warc_record(kind, body, *headers):
    head = ["WARC/1.0", f"WARC-Type: {kind}", "WARC-Date: 2024-01-01T00:00:00Z", *headers]
    return ("\r\n".join([*head, f"Content-Length: {len(body)}"]) + "\r\n\r\n").encode() + body + b"\r\n\r\n"


def response(page, status="200 OK", kind="text/html"):
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n\r\n".encode() + page.encode()


def test_warc_and_wet_records(tmp_path):
    http = "Content-Type: application/http; msgtype=response"
    (tmp_path / "a.warc").write_bytes(
        warc_record("warcinfo", b"software: x")
        + warc_record("response", response(PAGE), "WARC-Record-ID: <urn:uuid:1>", http)
        + warc_record("response", response(PAGE, "404 Not Found"), "WARC-Record-ID: <urn:uuid:2>", http)
        + warc_record("response", response("{}", kind="text/json"), "WARC-Record-ID: <urn:uuid:3>", http)
        + warc_record("response", response(PAGE), "WARC-Record-ID: <urn:uuid:4>", http,
                      "WARC-Block-Digest: sha1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
    )  # fmt: skip
    (tmp_path / "b.wet").write_bytes(
        warc_record("conversion", "Text größer".encode(), "WARC-Record-ID: <urn:uuid:5>")
        + warc_record("conversion", b"\xff", "WARC-Record-ID: <urn:uuid:6>")
    )
    items = items_of("warc", tmp_path)
    documents = {item.id: item.text for item in items if isinstance(item, Document)}
    assert list(documents) == ["<urn:uuid:1>", "<urn:uuid:5>"]
    assert "rivers and bridges" in documents["<urn:uuid:1>"]
    assert documents["<urn:uuid:5>"] == "Text größer"
    assert rules(items) == ["http_error", "not_html", "damaged_record", "undecodable"]


def test_what_is_no_archive_is_damaged(tmp_path):
    (tmp_path / "a.warc").write_bytes(b"not an archive at all\n" * 100)
    with pytest.raises(DataError, match=r"a\.warc is damaged"):
        items_of("warc", tmp_path)


CONTAINER = '<container xmlns="c"><rootfiles><rootfile full-path="O/p.opf"/></rootfiles></container>'
PACKAGE = """<package xmlns="o"><manifest><item id="two" href="2.xhtml"/><item id="one" href="1.xhtml"/>
</manifest><spine><itemref idref="one"/><itemref idref="two"/></spine></package>"""


def write_epub(path, container=CONTAINER, chapter=PAGE):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("META-INF/container.xml", container)
        book.writestr("O/p.opf", PACKAGE)
        book.writestr("O/2.xhtml", chapter.replace("Heading", "Second"))
        book.writestr("O/1.xhtml", chapter.replace("Heading", "First"))


def test_epub_chapters_come_in_reading_order(tmp_path):
    write_epub(tmp_path / "a.epub")
    (item,) = items_of("epub", tmp_path)
    assert 0 <= item.text.index("First") < item.text.index("Second")


def test_bad_books_are_refused(tmp_path):
    write_epub(tmp_path / "bomb.epub", chapter="x" * (3 << 20))
    assert rules(items_of("epub", tmp_path, max_document_bytes=1 << 20)) == ["too_large"]
    write_epub(tmp_path / "bomb.epub", '<!DOCTYPE a [<!ENTITY b "bbb">]>' + CONTAINER)
    with pytest.raises(DataError, match="declares a document type"):
        items_of("epub", tmp_path)
    (tmp_path / "bomb.epub").write_bytes(b"PK\3\4 not a zip")
    assert rules(items_of("epub", tmp_path, on_bad_file="skip")) == ["damaged_file"]


def pdf(*pages):
    """A minimal PDF with one line of text a page."""
    objects = ["<</Type/Catalog/Pages 2 0 R>>", ""]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        kids.append(f"{len(objects) + 1} 0 R")
        objects.append(
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents {len(objects) + 2} 0 R"
            "/Resources<</Font<</F1<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>>>>>"
        )
        objects.append(f"<</Length {len(stream)}>>stream\n{stream}\nendstream")
    objects[1] = f"<</Type/Pages/Kids[{' '.join(kids)}]/Count {len(kids)}>>"
    out, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    head = f"xref\n0 {size}\n0000000000 65535 f \n{table}"
    tail = f"trailer<</Size {size}/Root 1 0 R>>\nstartxref\n{len(out)}\n%%EOF"
    return out + (head + tail).encode()


def test_pdf_text_of_all_pages(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf("First page", "Second page"))
    (tmp_path / "scan.pdf").write_bytes(pdf("", ""))
    items = items_of("pdf", tmp_path)
    assert items[0].text == "First page\n\nSecond page"
    assert rules(items) == ["no_text"]
    assert rules(items_of("pdf", tmp_path / "a.pdf", max_document_bytes=15)) == ["too_large"]


def test_a_damaged_pdf_is_named(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4 nothing else")
    with pytest.raises(DataError, match=r"a\.pdf is damaged"):
        items_of("pdf", tmp_path)


PAIR = [{"source": "house", "target": "Haus"}]


def test_pairs_of_delimited_and_json_lines(tmp_path):
    (tmp_path / "a.tsv").write_text("house\tHaus\ntree\t\nonly one\n")
    items = items_of("pairs", tmp_path / "a.tsv", languages=("en", "de"))
    assert fields(items[:1]) == PAIR
    assert items[0].language == "en"
    assert rules(items) == ["unpaired", "wrong_columns"]
    (tmp_path / "c.csv").write_bytes(b"\xef\xbb\xbfSource, target\r\nhouse,Haus\r\n")
    assert fields(items_of("pairs", tmp_path / "c.csv")) == PAIR
    (tmp_path / "d.csv").write_bytes(b"\xef\xbb\xbfhouse,Haus")
    assert fields(items_of("pairs", tmp_path / "d.csv")) == PAIR
    (tmp_path / "b.jsonl").write_text('{"en": "house", "de": "Haus"}\n{"en": "tree"}\n')
    items = items_of("pairs", tmp_path / "b.jsonl", fields=("en", "de"))
    assert fields(items[:1]) == PAIR
    assert rules(items) == ["no_text_key"]


def test_pairs_of_moses_files_side_by_side(tmp_path):
    (tmp_path / "corpus.en").write_text("house\ntree\n\n")
    (tmp_path / "corpus.de").write_text("Haus\nBaum\nleer\n")
    keys = {"languages": ("en", "de")}
    items = items_of("pairs", tmp_path / "corpus.*", **keys)
    assert fields(items[:2]) == [*PAIR, {"source": "tree", "target": "Baum"}]
    assert rules(items) == ["unpaired"]
    assert items[1].id == f"{tmp_path}/corpus.en@6"
    (tmp_path / "corpus.de").write_text("Haus\n")
    with pytest.raises(DataError, match="differ in their number of lines, from line 2"):
        items_of("pairs", tmp_path / "corpus.en", **keys)
    (tmp_path / "corpus.de").unlink()
    with pytest.raises(DataError, match="has no partner"):
        items_of("pairs", tmp_path / "corpus.en", **keys)
    with pytest.raises(DataError, match="none of the known formats") as error:
        items_of("pairs", tmp_path / "corpus.en")
    assert "data.languages" in error.value.remedy


TMX = """<?xml version="1.0"?><tmx version="1.4"><body>
<tu tuid="t1"><tuv xml:lang="de-DE"><seg>Haus</seg></tuv>
<tuv xml:lang="EN"><seg>hou<bpt i="1"/>se</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>tree</seg></tuv></tu></body></tmx>"""


def test_pairs_of_a_translation_memory(tmp_path):
    (tmp_path / "a.tmx").write_text(TMX)
    items = items_of("pairs", tmp_path, languages=("en", "de"))
    assert (items[0].id, items[0].fields) == (f"{tmp_path}/a.tmx#t1", PAIR[0])
    assert rules(items) == ["unpaired"]
    assert fields(items_of("pairs", tmp_path)[:1]) == [{"source": "Haus", "target": "house"}]
    (tmp_path / "a.tmx").write_text(TMX[:210])
    with pytest.raises(DataError, match="not XML"):
        items_of("pairs", tmp_path)


PO = """msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"

msgid "house"
msgstr "Haus"

#, fuzzy
msgid "tree"
msgstr "Raum"

msgid "river"
msgstr ""
"""


def mo(entries):
    """A gettext catalogue in its binary form."""
    entries = sorted({"": "Content-Type: text/plain; charset=UTF-8\n", **entries}.items())
    count, texts = len(entries), b""
    tables = [[], []]
    start = 28 + 16 * count
    for side in (0, 1):
        for entry in entries:
            content = entry[side].encode()
            tables[side].append((len(content), start + len(texts)))
            texts += content + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, start)
    return head + b"".join(struct.pack("<2I", *pair) for table in tables for pair in table) + texts


def test_pairs_of_gettext_catalogues(tmp_path):
    (tmp_path / "a.po").write_text(PO, encoding="utf-8")
    assert fields(items_of("pairs", tmp_path / "a.po")) == PAIR
    (tmp_path / "b.mo").write_bytes(mo({"house": "Haus", "river": ""}))
    assert fields(items_of("pairs", tmp_path / "b.mo")) == PAIR
    (tmp_path / "b.mo").write_bytes(b"no catalogue at all")
    with pytest.raises(DataError, match="not a gettext catalogue"):
        items_of("pairs", tmp_path / "b.mo")
