"""Datasets that lie elsewhere: mirrored shard by shard, checked, bounded, shared between processes."""

import functools
import json
import multiprocessing
import os
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from prepared import write_dataset

from distllm.config.schema import DataConfig
from distllm.data import mirror, remote
from distllm.data.ahead import ShardsAhead
from distllm.data.manifest import Manifest
from distllm.data.mirror import dataset_directory, local_shard
from distllm.data.order import SampleOrder
from distllm.data.shards import index_of, map_shard
from distllm.data.stream import PackedSplit, StepStream
from distllm.errors import DataError

FORK = multiprocessing.get_context("fork")
DOCUMENTS = [[(i * j) % 250 + 1 for j in range(60)] for i in range(24)]


class Counting(SimpleHTTPRequestHandler):
    """Serves a directory and notes what was asked for."""

    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_PAUSE_SECONDS", 0.01)
    mirror._mirrored.cache_clear()
    write_dataset(tmp_path / "there", shard_bytes=600, train=DOCUMENTS, valid=DOCUMENTS[:2])
    handler = functools.partial(Counting, directory=str(tmp_path / "there"))
    serving = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    serving.daemon_threads = True
    serving.asked = []
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield serving
    serving.shutdown()


def config_of(server, tmp_path, **keys):
    out = f"http://127.0.0.1:{server.server_address[1]}"
    return DataConfig(out=out, cache_dir=str(tmp_path / "cache"), stall_seconds=1.0, **keys)


def shards_of(directory):
    return list(index_of(directory, Manifest.load(directory))["text"]["train"])


def ids_of(directory):
    dtype = np.dtype(Manifest.load(directory).token_dtype)
    return np.concatenate([map_shard(directory, shard, dtype)[0] for shard in shards_of(directory)])


def tars(directory):
    return sorted(directory.glob("*/*/*.tar"))


def test_a_local_directory_is_itself():
    assert dataset_directory(DataConfig(out="data/x")) == Path("data/x")


def test_shards_come_when_they_are_touched_and_once(server, tmp_path):
    directory = dataset_directory(config_of(server, tmp_path))
    manifest = Manifest.load(directory)
    assert manifest == Manifest.load(tmp_path / "there")
    manifest.check_sizes(directory)
    assert tars(directory) == []
    first = shards_of(directory)[0]
    map_shard(directory, first, np.dtype("<u2"))
    assert [file.name for file in tars(directory)] == ["00000.tar"]
    assert np.array_equal(ids_of(directory), ids_of(tmp_path / "there"))
    ids_of(directory)
    asked = [path for path in server.asked if path.endswith(".tar")]
    assert len(asked) == len(set(asked)) == len(shards_of(directory)) > 3


def stream_of(directory, *, shards_ahead=0):
    """One epoch of rows of 16, two a step."""
    split = PackedSplit(directory, "train", 16)
    order = SampleOrder.single(split.num_samples, 1)
    stream = StepStream(
        split,
        order,
        sequences_per_step=2,
        micro_batch_size=2,
        rank=0,
        world_size=1,
        shards_ahead=shards_ahead,
    )
    return split, stream


@pytest.mark.parametrize("ahead", [0, 2, 100])
def test_a_stream_over_a_mirror_is_the_stream_over_the_original(server, tmp_path, ahead):
    here, mirrored = stream_of(dataset_directory(config_of(server, tmp_path)), shards_ahead=ahead)
    there, original = stream_of(tmp_path / "there")
    assert here.sources == there.sources
    for first in range(0, here.num_samples - 1, 2):
        (got,), (wanted,) = mirrored.step(first), original.step(first)
        assert np.array_equal(got.tokens_BT, wanted.tokens_BT)
        assert np.array_equal(got.targets_BT, wanted.targets_BT)
    mirrored.close()
    original.close()
    asked = [path for path in server.asked if path.endswith(".tar")]
    assert len(asked) == len(set(asked))


def test_shards_are_asked_for_in_the_order_of_their_first_use_and_not_too_many():
    asked = []
    ahead = ShardsAhead(lambda source, shard: asked.append((source, shard)), most=2)
    ahead.plan([(30, 0, 7), (0, 0, 1), (10, 1, 0), (20, 0, 3), (10, 0, 2)])
    ahead.advance(0)  # the reader itself comes for the shard of position 0
    ahead.advance(0)
    ahead._thread.submit(int).result()
    assert asked == [(0, 2), (1, 0)]
    ahead.advance(10)
    ahead._thread.submit(int).result()
    ahead.close()
    assert asked == [(0, 2), (1, 0), (0, 3), (0, 7)]


def test_shards_are_here_before_the_reader_needs_them(server, tmp_path):
    directory = dataset_directory(config_of(server, tmp_path))
    split, stream = stream_of(directory, shards_ahead=100)
    stream.step(0)
    stream.close()  # waits for what is being fetched
    soon = split.first_uses(stream.order.locate(np.arange(8))[2])
    assert len(soon) > 1
    assert len(tars(directory)) > 1
    assert {place for place, _, _ in soon} <= set(range(8))


def test_what_fails_ahead_fails_when_the_reader_comes_to_it(server, tmp_path):
    directory = dataset_directory(config_of(server, tmp_path))
    split, stream = stream_of(directory, shards_ahead=100)
    (tmp_path / "there" / "text" / "train" / "00001.tar").unlink()
    needs = min(place for place, _, shard in split.first_uses(np.arange(split.num_samples)) if shard == 1)
    (position,) = (p for p in range(split.num_samples) if stream.order.locate(np.array([p]))[2] == needs)
    with pytest.raises(DataError, match=r"00001\.tar"):
        stream.step(position // 2 * 2)
    stream.close()


def test_the_mirror_follows_a_dataset_that_was_replaced(server, tmp_path):
    config = config_of(server, tmp_path)
    before = Manifest.load(dataset_directory(config))
    shutil.rmtree(tmp_path / "there")
    write_dataset(tmp_path / "there", train=DOCUMENTS[:3], valid=DOCUMENTS[:1])
    assert Manifest.load(dataset_directory(config)) == before  # not within one process
    mirror._mirrored.cache_clear()
    directory = dataset_directory(config)
    assert Manifest.load(directory) == Manifest.load(tmp_path / "there") != before
    assert np.array_equal(ids_of(directory), ids_of(tmp_path / "there"))


def test_the_shards_opened_longest_ago_make_room(server, tmp_path):
    size = (tmp_path / "there" / "text" / "train" / "00000.tar").stat().st_size
    directory = dataset_directory(config_of(server, tmp_path, cache_bytes=2 * size + 10))
    shards = shards_of(directory)
    kept = map_shard(directory, shards[0], np.dtype("<u2"))[0]
    expected = kept.copy()
    for shard in (shards[1], shards[0], shards[2]):
        local_shard(directory, shard.record)
        os.utime(directory / shard.record.path, ns=(len(server.asked), len(server.asked)))
        server.asked.append("")
    assert [file.name for file in tars(directory)] == ["00000.tar", "00002.tar"]
    for shard in shards[3:6]:
        local_shard(directory, shard.record)
    assert len(tars(directory)) == 2
    assert np.array_equal(kept, expected)  # what is mapped stays readable


def test_a_shard_that_another_process_removes_is_fetched_again(server, tmp_path, monkeypatch):
    directory = dataset_directory(config_of(server, tmp_path, cache_bytes=1))
    whole = ids_of(directory)
    utime, glob, lost = os.utime, Path.glob, []

    def removed_first(path):
        if path not in lost:
            lost.append(path)
            path.unlink()
        return utime(path)

    def with_one_that_is_gone(path, pattern):
        return [path / "text" / "train" / "gone.tar", *glob(path, pattern)]

    monkeypatch.setattr(mirror.os, "utime", removed_first)
    monkeypatch.setattr(Path, "glob", with_one_that_is_gone)
    assert np.array_equal(ids_of(directory), whole)
    assert lost


def test_a_shard_that_is_not_the_manifests_is_refused(server, tmp_path):
    directory = dataset_directory(config_of(server, tmp_path))
    wrong = tmp_path / "there" / "text" / "train" / "00001.tar"
    content = bytearray(wrong.read_bytes())
    content[700] ^= 1
    wrong.write_bytes(content)
    with pytest.raises(DataError, match=r"00001\.tar is not the shard that its manifest names"):
        ids_of(directory)
    assert not (directory / "text" / "train" / "00001.tar").exists()
    assert [file.name for file in tars(directory)] == ["00000.tar"]


def test_a_torn_file_of_the_mirror_is_fetched_again(server, tmp_path):
    directory = dataset_directory(config_of(server, tmp_path))
    shard = shards_of(directory)[0]
    path = local_shard(directory, shard.record)
    path.write_bytes(path.read_bytes()[:100])
    assert local_shard(directory, shard.record).stat().st_size == shard.record.bytes


def test_what_is_no_dataset_or_not_there_is_an_error(server, tmp_path):
    (tmp_path / "there" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"cannot read .*manifest\.json"):
        dataset_directory(config_of(server, tmp_path))
    (tmp_path / "there" / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="not a manifest"):
        dataset_directory(config_of(server, tmp_path))


def test_many_processes_fetch_each_shard_once(server, tmp_path):
    directory = dataset_directory(config_of(server, tmp_path))

    def read(out):
        out.write_text(json.dumps(ids_of(directory).tolist()))

    children = [FORK.Process(target=read, args=(tmp_path / f"ids{i}.json",)) for i in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    expected = ids_of(tmp_path / "there").tolist()
    assert all(json.loads((tmp_path / f"ids{i}.json").read_text()) == expected for i in range(4))
    asked = [path for path in server.asked if path.endswith(".tar")]
    assert len(asked) == len(set(asked))
