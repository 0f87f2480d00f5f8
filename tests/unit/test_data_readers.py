import bz2
import gzip
import io
import json
import lzma
import os

import pyarrow as pa
import pytest

from distllm.config.schema_read import ReadConfig
from distllm.data.read import READERS, find_parts, read_part
from distllm.data.read.files import find_files
from distllm.data.read.streams import read_lines
from distllm.data.records import Document, Dropped
from distllm.errors import ConfigError, DataError


def items_of(source, *paths, part_bytes=1 << 26, **keys):
    config = ReadConfig(source=source, paths=tuple(map(str, paths)), **keys)
    parts, dropped = find_parts(source, config, part_bytes=part_bytes)
    return [*dropped, *(item for part in parts for item in read_part(part, config))]


def read(source, *paths, **keys):
    items = items_of(source, *paths, **keys)
    documents = {item.id: item.text for item in items if isinstance(item, Document)}
    dropped = {item.id: item for item in items if isinstance(item, Dropped)}
    assert len(documents) + len(dropped) == len(items)
    return documents, dropped


def rules(dropped):
    return {id_: item.rule for id_, item in dropped.items()}


def test_an_unknown_source_is_refused():
    with pytest.raises(ConfigError, match="unknown data source 'txt'"):
        READERS["txt"]


def test_text_reads_files_directories_and_globs_in_the_order_of_their_paths(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.md", "sub/deep/d.txt", "other/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    documents, dropped = read("text", tmp_path / "other" / "e.txt", tmp_path / "sub", tmp_path / "*.txt")
    names = ["a.txt", "b.txt", "other/e.txt", "sub/c.md", "sub/deep/d.txt"]
    assert list(documents.items()) == [(str(tmp_path / name), f"text of {name}") for name in names]
    assert not dropped
    assert list(read("text", tmp_path / "**" / "*.txt")[0]) == [
        str(tmp_path / name) for name in ("a.txt", "b.txt", "other/e.txt", "sub/deep/d.txt")
    ]


def test_overlapping_entries_read_a_file_once(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    documents, _ = read("text", tmp_path, tmp_path / "a.txt", tmp_path / "*")
    assert len(documents) == 1


def test_an_existing_path_is_no_glob(tmp_path):
    (tmp_path / "a[1].txt").write_text("brackets")
    (tmp_path / "a1.txt").write_text("plain")
    assert list(read("text", tmp_path / "a[1].txt")[0].values()) == ["brackets"]


def test_symlinked_directories_and_hidden_names_are_dropped_with_a_reason(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("a")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("x")
    documents, dropped = read("text", tmp_path)
    assert list(documents) == [str(tmp_path / "real" / "a.txt")]
    loop, hidden = str(tmp_path / "real" / "loop"), str(tmp_path / ".git")
    assert rules(dropped) == {loop: "symlinked_directory", hidden: "hidden"}
    documents, dropped = read("text", tmp_path / "real" / "*" / "*.txt", tmp_path / "real")
    assert list(documents) == [str(tmp_path / "real" / "a.txt")]
    assert set(rules(dropped).values()) == {"symlinked_directory"}


@pytest.mark.parametrize(
    ("content", "rule", "reason"),
    [
        (b"fine until \xff here", "undecodable", "byte 0xff at offset 11"),
        (b"PNG\0\1\2", "not_text", "NUL byte at offset 3"),
        ("UTF-16 text".encode("utf-16"), "not_text", "NUL"),
    ],
)
def test_a_file_that_is_no_utf8_text_is_dropped(tmp_path, content, rule, reason):
    (tmp_path / "good.txt").write_text("gut gemacht: ä", encoding="utf-8-sig")
    (tmp_path / "bad.txt").write_bytes(content)
    documents, dropped = read("text", tmp_path)
    assert list(documents.values()) == ["gut gemacht: ä"]
    item = dropped[str(tmp_path / "bad.txt")]
    assert item.rule == rule
    assert reason in item.reason


def test_other_encodings_are_read_when_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("größer".encode("latin-1"))
    assert list(read("text", tmp_path, encoding="latin-1")[0].values()) == ["größer"]
    with pytest.raises(DataError, match="unknown encoding 'latin-99'"):
        read("text", tmp_path, encoding="latin-99")


def test_a_link_to_nothing_and_a_pipe_are_unreadable_not_waited_for(tmp_path):
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "good.txt").write_text("good")
    for source in ("text", "jsonl"):
        _, dropped = read(source, tmp_path / "*.txt")
        assert [rules(dropped)[str(tmp_path / f"{name}.txt")] for name in ("dangling", "pipe")] == [
            "unreadable"
        ] * 2


def test_a_directory_that_may_not_be_listed_is_dropped(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "locked" and access(path, mode))
    documents, dropped = read("text", tmp_path)
    assert list(documents.values()) == ["b"]
    assert rules(dropped) == {str(tmp_path / "locked"): "unreadable"}


def test_a_file_name_of_any_bytes_gives_an_id_that_can_be_encoded(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("text")
    documents, _ = read("text", tmp_path)
    assert [id_.encode().decode() for id_ in documents] == [f"{tmp_path}/\\xff.txt"]


@pytest.mark.parametrize("source", ["text", "jsonl"])
def test_entries_that_name_nothing_are_errors(tmp_path, source):
    (tmp_path / "empty").mkdir()
    for entry in ("missing.txt", "empty", "*.none", "**bad"):
        with pytest.raises(DataError) as error:
            read(source, tmp_path / entry)
        assert entry in error.value.cause
        assert error.value.where == "data.paths"
        assert error.value.remedy
    with pytest.raises(DataError, match=r"data\.paths is empty"):
        read(source)
    with pytest.raises(DataError, match="neither a file nor a directory"):
        find_files(ReadConfig(paths=("/dev/null",)), ("",))


def write_jsonl(path, *lines):
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    )


PACKERS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_files_are_known_by_content(tmp_path, suffix):
    content = b'{"body": "one"}\n\n{"body": "two\\nlines", "other": 1}\n'
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(PACKERS[suffix](content))
    (tmp_path / "b.jsonl").write_bytes(PACKERS[suffix](content))
    (tmp_path / "c.jsonl").write_bytes(content)
    (tmp_path / "README.txt").write_text("not taken from a directory")
    documents, dropped = read("jsonl", tmp_path, text_key="body", part_bytes=10)
    assert documents == {
        f"{tmp_path}/{name}@{offset}": text
        for name in (f"a.jsonl.{suffix}", "b.jsonl", "c.jsonl")
        for offset, text in ((0, "one"), (17, "two\nlines"))
    }
    assert not dropped


@pytest.mark.slow
@pytest.mark.parametrize("suffix", PACKERS)
def test_a_cut_compressed_file_is_an_error_or_a_counted_loss(tmp_path, suffix):
    whole = PACKERS[suffix](b"".join(b'{"text": "%x"}\n' % (i * i * i) for i in range(60000)))
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"a\.jsonl\.{suffix} is damaged"):
        read("jsonl", path)
    documents, dropped = read("jsonl", path, on_bad_file="skip")
    assert rules(dropped) == {str(path): "damaged_file"}
    assert len(documents) < 60000
    assert list(documents.values()) == [f"{i**3:x}" for i in range(len(documents))]


@pytest.mark.parametrize(
    ("line", "rule", "reason"),
    [
        (b'{"text": "torn', "broken_json", "Unterminated string"),
        (b'{"text": "\xff"}', "undecodable", "byte 0xff at offset 10"),
        (b'{"text": "\0"}', "not_text", "NUL byte"),
        (b"[" * 100_000, "broken_json", "recursion"),
        (["text"], "not_an_object", "a JSON list"),
        ({"body": "x", "id": 1}, "no_text_key", "no key 'text'; it has 'body', 'id'"),
        ({"text": None}, "text_not_string", "NoneType"),
        ({"text": "x" * 200_000}, "line_too_long", "data.max_document_bytes=150000"),
    ],
)
def test_a_bad_line_is_dropped_and_the_next_is_read(tmp_path, line, rule, reason):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, {"text": "before"}, line, {"text": "after"})
    small = max(7, path.stat().st_size // 200)
    for part_bytes in (1 << 26, small, 3 * small, 50_000):
        documents, dropped = read("jsonl", path, max_document_bytes=150_000, part_bytes=part_bytes)
        assert list(documents.values()) == ["before", "after"]
        assert rules(dropped) == {f"{path}@19": rule}
        assert reason in dropped[f"{path}@19"].reason


def test_a_line_over_many_parts_is_read_about_twice_not_once_a_part():
    class Counting(io.BytesIO):
        taken = 0

        def readline(self, size=-1):
            piece = super().readline(size)
            Counting.taken += len(piece)
            return piece

    size, step = 1 << 20, 1 << 14
    content = b"before\n" + b"x" * size + b"\nafter\n"
    found = [
        item
        for start in range(0, len(content), step)
        for item in read_lines(Counting(content), 1 << 10, start, start + step)
    ]
    assert found == [(0, b"before\n"), (7, None), (len(content) - 6, b"after\n")]
    assert Counting.taken < 2 * size


@pytest.mark.slow
def test_a_line_without_end_is_never_held_in_memory(tmp_path):
    bomb = gzip.compress(b'{"text": "' + b"x" * (300 << 20) + b'"}\n{"text": "after"}\n', 1)
    (tmp_path / "bomb.jsonl.gz").write_bytes(bomb)
    import tracemalloc

    tracemalloc.start()
    documents, dropped = read("jsonl", tmp_path, max_document_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(documents.values()) == ["after"]
    assert set(rules(dropped).values()) == {"line_too_long"}
    assert peak < 30 << 20


def test_a_bomb_of_one_document_is_refused(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"x" * (5 << 20)))
    documents, dropped = read("text", tmp_path, max_document_bytes=1 << 20)
    assert not documents
    assert set(rules(dropped).values()) == {"too_large"}


def test_a_binary_file_is_one_refusal_not_one_per_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\0\1\n" * 100)
    write_jsonl(tmp_path / "b.jsonl", {"text": "good"})
    documents, dropped = read("jsonl", tmp_path)
    assert list(documents.values()) == ["good"]
    assert rules(dropped) == {str(tmp_path / "a.jsonl"): "not_text"}


@pytest.mark.parametrize("part_bytes", [1, 2, 3, 17, 64, 1000])
def test_how_a_file_is_cut_does_not_show(tmp_path, part_bytes):
    lines = [{"text": "x" * (i * 7 % 31)} for i in range(40)]
    write_jsonl(tmp_path / "a.jsonl", *lines)
    whole = items_of("jsonl", tmp_path)
    assert [item.text for item in whole] == [line["text"] for line in lines]
    assert items_of("jsonl", tmp_path, part_bytes=part_bytes) == whole


def test_records_may_bring_id_and_language(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", {"text": "x", "key": 7, "lang": "de"}, {"text": "y", "key": None})
    items = items_of("jsonl", tmp_path, id_key="key", language_key="lang", language="en")
    assert (items[0].id, items[0].language) == ("7", "de")
    assert items[1].rule == "no_id_key"
    assert items_of("jsonl", tmp_path, language="en")[1].language == "en"


def test_max_bytes_makes_one_part_that_ends_with_the_document_that_reaches_it(tmp_path):
    for name in ("a", "b", "c"):
        write_jsonl(tmp_path / f"{name}.jsonl", *({"text": f"{name}{i}"} for i in range(3)))
    config = ReadConfig(source="jsonl", paths=(str(tmp_path),), max_bytes=9)
    parts, _ = find_parts("jsonl", config, part_bytes=1)
    assert len(parts) == 1
    assert [item.text for item in read_part(parts[0], config)] == ["a0", "a1", "a2", "b0", "b1"]


def test_the_fingerprint_follows_the_content_and_nothing_else(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", {"text": "one"})
    config = ReadConfig(source="jsonl", paths=(str(tmp_path),))
    first = find_parts("s", config)
    os.utime(tmp_path / "a.jsonl", (1, 1))
    assert find_parts("s", config) == first
    write_jsonl(tmp_path / "a.jsonl", {"text": "two"})
    assert find_parts("s", config)[0][0].fingerprint != first[0][0].fingerprint


def test_an_empty_file_is_no_document_but_a_refusal(tmp_path):
    for source, suffix in (("jsonl", "jsonl"), ("csv", "csv"), ("pairs", "tsv")):
        (tmp_path / f"empty.{suffix}").write_text("")
        (item,) = items_of(source, tmp_path / f"empty.{suffix}")
        assert (item.id, item.rule) == (str(tmp_path / f"empty.{suffix}"), "empty_file")
