"""Raw input over HTTP and S3, from real server processes on this machine."""

import errno
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from object_store import serve_s3
from prepared import write_dataset

from distllm.config.schema import DataConfig
from distllm.config.schema_read import ReadConfig
from distllm.data import remote
from distllm.data.mirror import dataset_directory
from distllm.data.read import find_parts, read_part
from distllm.data.stream import PackedSplit
from distllm.errors import DataError, StorageError

CONTENT = b"".join(b'{"text": "line %d"}\n' % i for i in range(2000))


def texts(*paths, **keys):
    config = ReadConfig(source="jsonl", paths=tuple(paths), **keys)
    parts, dropped = find_parts("s", config, part_bytes=1000)
    assert not dropped
    return [item.text for part in parts for item in read_part(part, config)]


EXPECTED = [f"line {i}" for i in range(2000)]


class Flaky(BaseHTTPRequestHandler):
    """Serves CONTENT, but fails GET requests as long as the server has troubles left."""

    troubles: list[str]

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()

    def do_GET(self):
        trouble = self.server.troubles.pop(0) if self.server.troubles else ""
        if trouble == "503":
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if trouble == "stall":
            self.wfile.write(CONTENT[:100])
            self.wfile.flush()
            self.server.stalled.wait(5)
        elif trouble in ("short", "reset"):
            self.wfile.write(CONTENT[:1000])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.wfile.write(CONTENT)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_PAUSE_SECONDS", 0.01)
    flaky = ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    flaky.daemon_threads = True
    flaky.troubles, flaky.stalled = [], threading.Event()
    threading.Thread(target=flaky.serve_forever, daemon=True).start()
    yield flaky
    flaky.stalled.set()
    flaky.shutdown()


def url(server, name="a.jsonl"):
    return f"http://127.0.0.1:{server.server_address[1]}/{name}"


@pytest.mark.parametrize("trouble", ["", "503", "reset", "short", "stall"])
def test_http_survives_trouble(server, trouble):
    server.troubles += [trouble] if trouble else []
    assert texts(url(server), stall_seconds=0.3) == EXPECTED
    assert not server.troubles


@pytest.mark.slow
def test_a_server_that_never_recovers_is_an_error_before_its_deadline(server):
    server.troubles += ["stall"] * 100
    begun = time.monotonic()
    with pytest.raises(DataError, match="cannot read http://127"):
        texts(url(server), stall_seconds=0.2)
    assert time.monotonic() - begun < 10


def test_a_full_disk_here_is_no_fault_of_the_server_and_is_not_tried_again(tmp_path, monkeypatch):
    (tmp_path / "there").write_bytes(CONTENT)
    asked = []

    def full(path):
        asked.append(path)
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(remote, "fsync_file", full)
    with pytest.raises(StorageError, match="no space left"):
        remote.fetch(f"file://{tmp_path}/there", tmp_path / "here", 5.0)
    assert len(asked) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_an_unknown_protocol_is_named():
    with pytest.raises(DataError, match="gopher"):
        texts("gopher://host/a.jsonl")


def test_file_urls_are_files(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(CONTENT)
    assert texts(f"file://{tmp_path}/a.jsonl") == EXPECTED


@pytest.fixture(scope="module")
def s3():
    with serve_s3() as system:
        yield system


def test_s3_objects_directories_and_globs(s3):
    s3.pipe("corpus/deep/a.jsonl", CONTENT[:19])
    s3.pipe("corpus/b.jsonl", CONTENT[19:38])
    s3.pipe("corpus/readme.txt", b"not taken")
    assert texts("s3://corpus/b.jsonl") == ["line 1"]
    assert texts("s3://corpus") == ["line 1", "line 0"]
    assert texts("s3://corpus/*.jsonl", "s3://corpus/deep/*.jsonl") == ["line 1", "line 0"]
    with pytest.raises(DataError, match="cannot read s3://corpus/missing"):
        texts("s3://corpus/missing.jsonl")
    with pytest.raises(DataError, match="names no file"):
        texts("s3://corpus/*.none")


def test_a_bucket_that_cannot_be_listed_is_an_error_with_its_url(monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_PAUSE_SECONDS", 0.01)

    class Broken:
        def isdir(self, _):
            raise ConnectionResetError("reset by peer")

        glob = isdir

    monkeypatch.setattr(remote, "file_system", lambda url, _: (Broken(), url.removeprefix("s3://")))
    for path in ("s3://corpus", "s3://corpus/*.jsonl"):
        with pytest.raises(DataError, match=re.escape(f"cannot read {path}: reset by peer")):
            texts(path)


def test_the_fingerprint_of_an_object_follows_its_content(s3):
    config = ReadConfig(source="jsonl", paths=("s3://corpus/c.jsonl",))
    prints = []
    for content in (b'{"text": "1"}', b'{"text": "1"}', b'{"text": "2"}'):
        s3.pipe("corpus/c.jsonl", content)
        prints.append(find_parts("s", config)[0][0].fingerprint)
    assert prints[2] not in prints[:2]


def test_a_dataset_in_a_bucket_is_read_as_one_on_disk(s3, tmp_path):
    write_dataset(tmp_path / "there", shard_bytes=200, train=[[i + 1] * 40 for i in range(9)], valid=[[7]])
    s3.put(str(tmp_path / "there"), "corpus/data", recursive=True)
    data = DataConfig(out="s3://corpus/data", cache_dir=str(tmp_path / "cache"))
    here = PackedSplit(dataset_directory(data), "train", 8)
    there = PackedSplit(tmp_path / "there", "train", 8)
    samples_B = np.arange(there.sources[0].total)
    assert np.array_equal(
        here.batch(samples_B, samples_B).tokens_BT, there.batch(samples_B, samples_B).tokens_BT
    )
