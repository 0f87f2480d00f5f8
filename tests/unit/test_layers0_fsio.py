import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from distllm import fsio
from distllm.errors import ConfigError, IntegrityError, StorageError
from distllm.fsio import (
    append_json_line,
    atomic_open,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    digest_bytes,
    digest_file,
    ensure_writable,
    free_bytes,
    read_json,
    read_json_lines,
    read_tail,
    storage_errors,
)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_content_appears_whole_under_its_name_only(tmp_path):
    target = tmp_path / "new" / "deep" / "file"
    with atomic_open(target) as stream:
        stream.write(b"half")
        stream.flush()
        assert not target.exists()
        stream.write(b" and half")
    assert target.read_bytes() == b"half and half"
    assert names(target.parent) == ["file"]


def write_and_fail(path, error):
    with atomic_open(path) as stream:
        stream.write(b"partial")
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_block_leaves_nothing_new_and_keeps_what_was_there(tmp_path, error):
    (tmp_path / "old").write_bytes(b"old")
    for name in ("old", "fresh"):
        with pytest.raises(error):
            write_and_fail(tmp_path / name, error)
    assert names(tmp_path) == ["old"]
    assert (tmp_path / "old").read_bytes() == b"old"


def test_content_is_flushed_before_the_rename_and_the_directory_after_it(tmp_path, monkeypatch):
    target = tmp_path / "file"
    flushed = []

    def record(descriptor):
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        flushed.append((is_directory, target.exists(), os.fstat(descriptor).st_size))

    monkeypatch.setattr(os, "fsync", record)
    atomic_write_bytes(target, b"content")
    assert [entry[:2] for entry in flushed] == [(False, False), (True, True)]
    assert flushed[0][2] == len(b"content")


def test_a_disk_that_fails_to_flush_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "file"
    target.write_text("old")

    def fail(_descriptor):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="no space left"):
        atomic_write_text(target, "new")
    assert names(tmp_path) == ["file"]
    assert target.read_text() == "old"


def test_text_is_utf8_and_json_sorted_and_closed_with_a_newline(tmp_path):
    atomic_write_text(tmp_path / "text", "Zażółć\n")
    assert (tmp_path / "text").read_bytes() == "Zażółć\n".encode()
    atomic_write_json(tmp_path / "json", {"b": [1], "a": None})
    assert (tmp_path / "json").read_text() == '{\n  "a": null,\n  "b": [\n    1\n  ]\n}\n'
    assert read_json(tmp_path / "json") == {"a": None, "b": [1]}


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EFBIG, "no space left"),
        (errno.EACCES, "not permitted"),
        (errno.EPERM, "not permitted"),
        (errno.EROFS, "not permitted"),
        (errno.ENAMETOOLONG, "too long"),
        (errno.EIO, "file server failed"),
        (errno.ESTALE, "file server failed"),
    ],
)
def test_disk_errors_name_the_path_and_a_remedy(tmp_path, number, cause):
    with pytest.raises(StorageError, match=cause) as caught, storage_errors(tmp_path / "file"):
        raise OSError(number, os.strerror(number))
    assert str(tmp_path / "file") in caught.value.cause
    assert caught.value.where == str(tmp_path / "file")
    assert caught.value.remedy
    assert caught.value.__cause__.errno == number


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), OSError("odd"), ValueError("bug")])
def test_other_errors_pass_through(tmp_path, error):
    with pytest.raises(type(error)) as caught, storage_errors(tmp_path):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("below", ["", "run", "run/checkpoints"])
@pytest.mark.parametrize("write", [ensure_writable, lambda path: atomic_write_text(path / "file", "x")])
def test_a_file_where_a_directory_must_be_is_named(tmp_path, below, write):
    blocker = tmp_path / "blocker"
    blocker.write_text("precious")
    with pytest.raises(StorageError, match="is a file") as caught:
        write(blocker / below)
    assert str(blocker) in caught.value.cause
    assert caught.value.remedy.startswith(f"move {blocker} away")
    assert blocker.read_text() == "precious"


@pytest.mark.parametrize("out", ["/dev/null/x", "link/x"])
def test_what_is_no_directory_either_is_named(tmp_path, out):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(StorageError, match="is a file or a broken link"):
        ensure_writable(tmp_path / out)


@pytest.mark.parametrize("write", [ensure_writable, lambda path: atomic_write_text(path / "file", "x")])
def test_a_file_system_that_keeps_no_files_is_named(write):
    with pytest.raises(StorageError, match="cannot hold files"):
        write(Path("/proc/x"))


def test_what_exists_but_is_no_file_is_not_blamed(tmp_path):
    with pytest.raises(FileExistsError), storage_errors(tmp_path):
        tmp_path.mkdir()


def test_a_full_disk_is_told_when_a_line_is_appended(tmp_path):
    (tmp_path / "log").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="no space left"):
        append_json_line(tmp_path / "log", {"step": 1})


def test_lines_come_back_in_order_with_their_keys_in_order(tmp_path):
    path = tmp_path / "log"
    records = [{"step": 2, "loss": 0.1}, {"text": "two\nlines ż\u2028"}, {}]
    for record in records:
        append_json_line(path, record)
    assert list(read_json_lines(path)) == records
    assert list(next(read_json_lines(path))) == ["step", "loss"]
    assert path.read_bytes().count(b"\n") == len(records)


@pytest.mark.parametrize("kept", [1, 5, 12])
def test_a_line_torn_by_a_kill_is_ignored(tmp_path, kept):
    path = tmp_path / "log"
    append_json_line(path, {"step": 1})
    with path.open("a") as stream:
        stream.write('{"step": 2}\n'[: kept - 1])
    assert list(read_json_lines(path)) == [{"step": 1}]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "does not exist"),
        (b'{"a": 1', "not valid JSON"),
        (b"", "not valid JSON"),
        (b'"\xff"', "not v"),
        (b"[1]", "holds no JSON object"),
        (b"[" * 100_000, "not valid JSON"),
        (..., "Is a directory"),
    ],
)
def test_json_that_cannot_be_read_is_an_integrity_error(tmp_path, content, cause):
    path = tmp_path / "file.json"
    if content is ...:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(IntegrityError, match=cause) as caught:
        read_json(path)
    assert caught.value.where == str(path)


def test_digests_are_those_of_xxh3_128():
    assert digest_bytes(b"") == "99aa06d3014798d86001c324468d497f"
    assert digest_bytes(memoryview(b"abc")) == digest_bytes(b"abc") == "06b05ab6733a618578af5f94892f3950"


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20 + 7])
def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert digest_file(tmp_path / "file") == digest_bytes(content)


def test_a_writable_directory_is_made_and_left_empty(tmp_path):
    ensure_writable(tmp_path / "a" / "b")
    ensure_writable(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == []


def test_a_directory_on_a_full_disk_is_refused_and_left_empty(tmp_path, monkeypatch):
    def fill(path, _content):
        path.touch()
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(fsio.Path, "write_bytes", fill)
    with pytest.raises(StorageError, match="no space left"):
        ensure_writable(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="not permitted"):
        ensure_writable(tmp_path / "run")


def test_free_space_of_what_does_not_exist_yet_is_that_of_its_disk(tmp_path, monkeypatch):
    asked = []
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage)
    assert free_bytes(tmp_path / "not" / "yet") == usage.free
    assert asked == [tmp_path]
    monkeypatch.chdir(tmp_path)
    assert free_bytes("relative/and/missing") == usage.free
    assert asked[1] == tmp_path


def test_a_directory_appears_whole_and_replaces_only_its_own_kind(tmp_path):
    for content in ("one", "two"):
        with fsio.atomic_directory(tmp_path / "out", "mark") as directory:
            (directory / "mark").write_text(content)
            assert names(tmp_path) == [directory.name] + ["out"] * (content == "two")
        assert (tmp_path / "out" / "mark").read_text() == content
        assert names(tmp_path) == ["out"]


def test_a_directory_whose_making_fails_leaves_the_earlier_one(tmp_path):
    with fsio.atomic_directory(tmp_path / "out", "mark") as directory:
        (directory / "mark").write_text("kept")
    half = fsio.atomic_directory(tmp_path / "out", "mark")
    (half.__enter__() / "mark").write_text("half")
    assert not half.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert (tmp_path / "out" / "mark").read_text() == "kept"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("make", [lambda p: p.write_text("x"), lambda p: (p / "sub").mkdir(parents=True)])
def test_what_is_something_else_is_not_replaced(tmp_path, make):
    make(tmp_path / "out")
    with pytest.raises(ConfigError, match="not written by this command"):
        fsio.atomic_directory(tmp_path / "out", "mark").__enter__()
    (tmp_path / "empty").mkdir()
    with fsio.atomic_directory(tmp_path / "empty", "mark") as directory:
        (directory / "mark").touch()
    assert names(tmp_path / "empty") == ["mark"]


def test_a_line_that_a_full_disk_cuts_is_taken_back(tmp_path, monkeypatch):
    path, write = tmp_path / "log.jsonl", os.write
    append_json_line(path, {"step": 1})
    with monkeypatch.context() as full:
        full.setattr(fsio.os, "write", lambda descriptor, content: write(descriptor, content[:5]))
        with pytest.raises(StorageError, match="no space left"):
            append_json_line(path, {"step": 2})
    append_json_line(path, {"step": 3})
    assert [line["step"] for line in read_json_lines(path)] == [1, 3]


def test_two_writers_of_one_process_id_do_not_share_a_temporary_file(tmp_path):
    with atomic_open(tmp_path / "file") as first, atomic_open(tmp_path / "file") as second:
        first.write(b"one and one")
        second.write(b"two")
    assert (tmp_path / "file").read_bytes() == b"one and one"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(("number", "passes"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_directory_that_cannot_be_flushed_is_no_failed_write(tmp_path, monkeypatch, number, passes):
    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fsio.os, "fsync", fsync)
    if passes:
        atomic_write_text(tmp_path / "file", "text")
    else:
        with pytest.raises(StorageError, match="failed"):
            atomic_write_text(tmp_path / "file", "text")


def test_the_end_of_a_file_is_read_however_long_it_is(tmp_path):
    (tmp_path / "log").write_bytes(b"0123456789")
    assert (read_tail(tmp_path / "log", 4), read_tail(tmp_path / "log", 40)) == (b"6789", b"0123456789")
