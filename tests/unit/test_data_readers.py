import gzip
import json
import os

import pytest

from distllm.config.schema import Config, DataConfig
from distllm.data.readers import SOURCES, find_files
from distllm.data.records import Document, Dropped
from distllm.errors import ConfigError, DataError


def read(source, *paths, **keys):
    config = Config(data=DataConfig(source=source, paths=tuple(map(str, paths)), **keys))
    items = list(SOURCES[source](config))
    documents = {item.id: item.text for item in items if isinstance(item, Document)}
    dropped = {item.id: item for item in items if isinstance(item, Dropped)}
    assert len(documents) + len(dropped) == len(items)
    return documents, dropped


def rules(dropped):
    return {id_: item.rule for id_, item in dropped.items()}


def test_an_unknown_source_is_refused():
    with pytest.raises(ConfigError, match="unknown data source 'txt'"):
        SOURCES["txt"]


def test_text_reads_files_directories_and_globs_in_a_stable_order(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.md", "sub/deep/d.txt", "other/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    documents, dropped = read("text", tmp_path / "other" / "e.txt", tmp_path / "sub", tmp_path / "*.txt")
    names = ["other/e.txt", "sub/c.md", "sub/deep/d.txt", "a.txt", "b.txt"]
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
    (tmp_path / "good.txt").write_text("gut gemacht: ä", encoding="utf-8")
    (tmp_path / "bad.txt").write_bytes(content)
    documents, dropped = read("text", tmp_path)
    assert list(documents.values()) == ["gut gemacht: ä"]
    item = dropped[str(tmp_path / "bad.txt")]
    assert item.rule == rule
    assert reason in item.reason


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
        list(find_files(["/dev/null"]))


def write_jsonl(path, *lines):
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    )


def test_jsonl_reads_plain_and_gzip_by_content(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", {"body": "one"}, b"", {"body": "two\nlines", "other": 1})
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as stream:
        stream.write('{"body": "three"}\n')
    (tmp_path / "c.jsonl").write_bytes((tmp_path / "b.jsonl.gz").read_bytes())
    (tmp_path / "README.txt").write_text("not taken from a directory")
    documents, dropped = read("jsonl", tmp_path, text_key="body")
    assert documents == {
        f"{tmp_path}/a.jsonl:1": "one",
        f"{tmp_path}/a.jsonl:3": "two\nlines",
        f"{tmp_path}/b.jsonl.gz:1": "three",
        f"{tmp_path}/c.jsonl:1": "three",
    }
    assert not dropped


@pytest.mark.parametrize(
    ("line", "rule", "reason"),
    [
        (b'{"text": "torn', "broken_json", "Unterminated string"),
        (b'{"text": "\xff"}', "broken_json", "decode byte 0xff"),
        (b"[" * 100_000, "broken_json", "recursion"),
        (["text"], "not_an_object", "a JSON list"),
        ({"body": "x", "id": 1}, "no_text_key", "no key 'text'; it has 'body', 'id'"),
        ({"text": None}, "text_not_string", "NoneType"),
    ],
)
def test_a_bad_line_is_dropped_and_the_next_is_read(tmp_path, line, rule, reason):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, {"text": "before"}, line, {"text": "after"})
    documents, dropped = read("jsonl", path)
    assert list(documents.values()) == ["before", "after"]
    assert rules(dropped) == {f"{path}:2": rule}
    assert reason in dropped[f"{path}:2"].reason


def test_a_binary_file_is_one_refusal_not_one_per_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\0\1\n" * 100)
    write_jsonl(tmp_path / "b.jsonl", {"text": "good"})
    documents, dropped = read("jsonl", tmp_path)
    assert list(documents.values()) == ["good"]
    assert rules(dropped) == {str(tmp_path / "a.jsonl"): "not_text"}


def test_a_cut_gzip_file_is_an_error(tmp_path):
    whole = gzip.compress(b"".join(b'{"text": "%d"}\n' % i for i in range(5000)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz is a damaged gzip file"):
        read("jsonl", tmp_path)
