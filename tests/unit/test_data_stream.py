import threading

import numpy as np
import pytest
from prepared import byte_tokenizer, write_dataset

from distllm.config.steps import Stage, StepSizes
from distllm.data.batch import IGNORE_INDEX, Batch
from distllm.data.inspect import describe_batch
from distllm.data.order import SampleOrder
from distllm.data.stream import PackedSplit, StepStream
from distllm.errors import DataError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stream")
    documents = [[1 + (i * 31 + j) % 256 for j in range(i % 50)] for i in range(200)]
    write_dataset(directory, train=documents, valid=[[1] * 8], shard_bytes=500)
    return directory


@pytest.fixture
def split(dataset):
    return PackedSplit(dataset, "train", 16)


@pytest.fixture
def stream(split):
    stream = open_stream(split)
    yield stream
    stream.close()


def open_stream(split, *, seed=0, sequences_per_step=8, micro_batch_size=4, rank=0, world_size=1):
    return StepStream(
        split,
        SampleOrder.single(split.num_samples, seed),
        sequences_per_step=sequences_per_step,
        micro_batch_size=micro_batch_size,
        rank=rank,
        world_size=world_size,
    )


def content(batches):
    return [
        (b.tokens_BT.tolist(), b.targets_BT.tolist(), b.segments_BT.tolist(), b.sample_ids_B.tolist())
        for b in batches
    ]


def test_batches_have_the_promised_shapes_and_types(stream):
    batches = stream.step(0)
    assert len(batches) == 2
    for batch in batches:
        for name in ("tokens_BT", "targets_BT", "positions_BT", "segments_BT"):
            array_BT = getattr(batch, name)
            assert (array_BT.shape, array_BT.dtype) == ((4, 16), np.int32)
            assert array_BT.flags.c_contiguous
        assert batch.sample_ids_B.dtype == np.int64
        follows_BT = batch.targets_BT[:, :-1] == batch.tokens_BT[:, 1:]
        silent_BT = (batch.targets_BT == IGNORE_INDEX)[:, :-1]
        np.testing.assert_array_equal(follows_BT, ~silent_BT)


def test_the_order_of_samples_does_not_depend_on_the_sizes_of_steps(split):
    sizes = StepSizes((Stage(0, 0, 2), Stage(3, 6, 4), Stage(4, 10, 8)))
    growing = StepStream(
        split,
        SampleOrder.single(split.num_samples, 0),
        sequences_per_step=8,
        micro_batch_size=4,
        rank=0,
        world_size=1,
        sizes=sizes,
    )
    steps = [growing.step(sizes.before(number), number) for number in range(6)]
    assert [[len(batch.tokens_BT) for batch in step] for step in steps] == [[2]] * 3 + [[4], [4, 4], [4, 4]]
    again = growing.step(sizes.before(3), 3)  # a step that was not read ahead
    growing.close()
    constant = open_stream(split, sequences_per_step=2, micro_batch_size=1)
    alone = [constant.step(first) for first in range(0, 26, 2)]
    constant.close()

    def rows(many):
        return [row for step in many for batch in step for row in batch.tokens_BT.tolist()]

    assert rows(steps) == rows(alone)
    assert content(again) == content(steps[3])


def test_an_epoch_visits_every_window_once(split):
    stream = open_stream(split, sequences_per_step=split.num_samples, micro_batch_size=split.num_samples)
    (batch,) = stream.step(0)
    stream.close()
    every_B = np.arange(split.num_samples)
    windows = split.batch(every_B, every_B).tokens_BT.tolist()
    assert batch.tokens_BT.tolist() != windows
    assert sorted(batch.tokens_BT.tolist()) == sorted(windows)


def test_steps_continue_in_any_order_and_after_a_restart(split, stream):
    forward = [content(stream.step(g)) for g in range(0, 80, 8)]
    backward = [content(stream.step(g)) for g in reversed(range(0, 80, 8))]
    assert forward == backward[::-1]
    fresh = open_stream(split)
    assert content(fresh.step(40)) == forward[5]
    fresh.close()


def test_the_sequence_does_not_depend_on_the_step_size(split, stream):
    small = open_stream(split, sequences_per_step=2, micro_batch_size=1)
    rows = [row for g in range(0, 16, 2) for batch in small.step(g) for row in batch.tokens_BT.tolist()]
    small.close()
    assert rows == [row for g in (0, 8) for batch in stream.step(g) for row in batch.tokens_BT.tolist()]


def test_seeds_give_other_orders(split, stream):
    other = open_stream(split, seed=1)
    assert content(other.step(0)) != content(stream.step(0))
    other.close()


def test_the_next_step_is_read_ahead_on_one_thread(split, monkeypatch):
    read, seen = threading.Event(), []
    whole = PackedSplit.read

    def record(self, samples_B, sample_ids_B, longest_B):
        seen.append((int(sample_ids_B[0]), threading.current_thread()))
        if sample_ids_B[0] == 16:
            read.set()
        return whole(self, samples_B, sample_ids_B, longest_B)

    monkeypatch.setattr(PackedSplit, "read", record)
    stream = open_stream(split)
    stream.step(0)
    stream.step(8)
    assert read.wait(10), "samples 16 to 23 were not read ahead"
    stream.close()
    assert [first for first, _ in seen] == [0, 8, 16]
    threads = {thread for _, thread in seen}
    assert len(threads) == 1
    assert threading.current_thread() not in threads
    assert not threads.pop().is_alive()


def test_an_error_of_the_thread_is_raised_by_step(split, monkeypatch):
    stream = open_stream(split)
    before = content(stream.step(0))
    after = content(stream.step(8))
    stream.step(0)
    read = PackedSplit.read
    monkeypatch.setattr(PackedSplit, "read", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stream.step(16)
    monkeypatch.setattr(PackedSplit, "read", read)
    assert content(stream.step(8)) == after
    assert content(stream.step(0)) == before
    stream.close()
    with pytest.raises(RuntimeError):
        stream.step(0)


@pytest.mark.parametrize(
    "keys",
    [{"sequences_per_step": 6}, {"world_size": 3}, {"rank": 1}, {"world_size": 4, "sequences_per_step": 4}],
)
def test_batches_that_do_not_divide_are_refused(split, keys):
    with pytest.raises(ValueError, match="do not split"):
        open_stream(split, **keys)


def test_a_sample_outside_the_split_is_refused(split):
    for k in (-1, split.num_samples):
        with pytest.raises(IndexError):
            split.batch(np.array([0, k]), np.array([0, 1]))


def test_a_split_shorter_than_a_sample_is_refused(dataset):
    assert PackedSplit(dataset, "valid", 8).num_samples == 1
    with pytest.raises(DataError, match="has 9 tokens, fewer than the 10 of one sample") as error:
        PackedSplit(dataset, "valid", 9)
    assert "data.seq_len" in error.value.remedy


def test_opening_names_a_cut_shard(dataset, tmp_path):
    write_dataset(tmp_path, train=[[1] * 100] * 9, shard_bytes=500)
    shard = tmp_path / "text" / "train" / "00002.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"text/train/00002\.tar"):
        PackedSplit(tmp_path, "train", 16)


def test_a_batch_can_be_read_as_text(tmp_path):
    tokenizer = byte_tokenizer()
    texts = ["alpha", "beta\n", "", "gamma delta"]
    write_dataset(tmp_path, train=[tokenizer.encode(text) for text in texts])
    split = PackedSplit(tmp_path, "train", 8)
    text = describe_batch(split.batch(np.array([0, 1]), np.array([41, 7])), tokenizer)
    assert text == (
        "=== row 0 · sample 41 · 8 tokens, 8 scored · 2 documents\n"
        "--- document 1 of 2 · 6 tokens · from its start\nalpha\n"
        "--- document 2 of 2 · 2 tokens · from its start\nb\n"
        "--- next: 'e'\n\n"
        "=== row 1 · sample 7 · 8 tokens, 7 scored · 3 documents\n"
        "--- document 1 of 3 · 4 tokens · continued\neta\n\n"
        "--- 1 tokens without text or loss\n"
        "--- document 3 of 3 · 3 tokens · from its start\nga\n"
        "--- next: 'm'\n"
    )
    row_1T = np.array([[1, 2]], dtype=np.int32)
    masked = Batch(row_1T, np.full_like(row_1T, IGNORE_INDEX), row_1T * 0, row_1T * 0, np.array([0]))
    assert "2 tokens, 0 scored · 1 document\n" in describe_batch(masked, tokenizer)
    assert "next" not in describe_batch(masked, tokenizer)
