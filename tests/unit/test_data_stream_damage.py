from itertools import pairwise

import numpy as np
import pytest
from prepared import byte_tokenizer, write_dataset, write_sources

from distllm.data.batch import IGNORE_INDEX
from distllm.data.inspect import describe_batch
from distllm.data.manifest import Manifest
from distllm.data.order import SampleOrder
from distllm.data.packing import DocumentLayout
from distllm.data.shards import index_of
from distllm.data.shards.format import BLOCK_BYTES
from distllm.data.stream import PackedSplit, StepStream
from distllm.errors import DataError

SEQ_LEN = 512
BLOCK_IDS = BLOCK_BYTES // 2


@pytest.fixture
def damaged(tmp_path):
    """A dataset of one shard of four blocks, the second of which has a flipped bit."""
    write_dataset(tmp_path, train=[[1 + k % 250 for k in range(999)] for _ in range(120)])
    damage(tmp_path, shard=0, block=1)
    return tmp_path


def damage(directory, *, shard, block):
    """Flip a bit of a block of a shard of the only source."""
    shard = index_of(directory, Manifest.load(directory))["text"]["train"][shard]
    content = bytearray((directory / shard.record.path).read_bytes())
    content[shard.members["tokens.bin"].offset + block * BLOCK_BYTES + 777] ^= 64
    (directory / shard.record.path).write_bytes(content)


def touching(split):
    """The samples that read an id of the second block."""
    spans = [(k * SEQ_LEN, (k + 1) * SEQ_LEN) for k in range(split.num_samples)]
    return [k for k, (first, last) in enumerate(spans) if first < 2 * BLOCK_IDS and last >= BLOCK_IDS]


def batch_of(split, *samples):
    return split.batch(np.array(samples), np.array(samples))


def test_a_damaged_block_is_an_error_that_names_shard_block_and_sample(damaged):
    split = PackedSplit(damaged, "train", SEQ_LEN)
    first, last = touching(split)[0], touching(split)[-1]
    batch_of(split, first - 1, last + 1)
    with pytest.raises(DataError, match=rf"text/train/00000\.tar: block 1 .* sample {last} of source text"):
        batch_of(split, 0, last)
    with pytest.raises(DataError, match=f"sample {first} of source text"):
        batch_of(split, first)


def test_skipping_keeps_the_rows_without_loss_and_counts_them(damaged):
    split = PackedSplit(damaged, "train", SEQ_LEN, on_damage="skip")
    lost = touching(split)
    every_B = np.arange(split.num_samples)
    batch, damaged_rows = split.read(every_B, every_B)
    silent = np.flatnonzero((batch.targets_BT == IGNORE_INDEX).all(axis=1)).tolist()
    assert silent == lost
    assert damaged_rows == len(lost)
    assert not batch.tokens_BT[lost].any()
    assert "512 tokens, 0 scored" in describe_batch(batch_of(split, lost[0]), byte_tokenizer())


def test_a_block_inside_a_long_row_is_proven_too(tmp_path):
    seq_len = 5 * BLOCK_IDS // 2
    write_dataset(tmp_path, train=[[1 + k % 250 for k in range(999)] for _ in range(270)])
    damage(tmp_path, shard=0, block=3)
    split = PackedSplit(tmp_path, "train", seq_len)
    batch_of(split, 0, 2)  # proves the blocks in which sample 1 begins and ends
    with pytest.raises(DataError, match=r"block 3 .* sample 1 of source text"):
        batch_of(split, 1)


def test_a_proof_of_one_shard_is_none_of_another(tmp_path):
    documents = [[1 + k % 250 for k in range(999)]] * 66
    write_dataset(tmp_path, train=documents, shard_bytes=BLOCK_BYTES)
    damage(tmp_path, shard=1, block=0)
    split = PackedSplit(tmp_path, "train", 1000)
    whole, broken = range(split.sources[0].shards[0]), split.sources[0].shards[0] + 1
    batch_of(split, *whole)
    with pytest.raises(DataError, match=rf"text/train/00001\.tar: block 0 .* sample {broken} "):
        batch_of(split, broken)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_stream_counts_what_was_taken_and_stops_beyond_the_budget(damaged, world_size):
    split = PackedSplit(damaged, "train", SEQ_LEN, on_damage="skip")
    order, lost = SampleOrder.single(split.num_samples, 5), touching(split)

    def opened(max_damage):
        return StepStream(
            split,
            order,
            sequences_per_step=8,
            micro_batch_size=2,
            rank=world_size - 1,
            world_size=world_size,
            max_damage=max_damage,
        )

    mine = order.locate(np.arange(world_size - 1, 80, world_size))[2].reshape(10, -1)
    counts = np.cumsum(np.isin(mine, lost).sum(axis=1)).tolist()
    stream, seen = opened(1.0), []
    for step in range(10):
        stream.step(8 * step)
        seen.append(stream.damaged)
    stream.close()
    assert seen == counts
    limit = 0.1
    stop = next(s for s, n in enumerate(counts) if n > limit * (s + 1) * 8 / world_size + 1)
    stream = opened(limit)
    for step in range(stop):
        stream.step(8 * step)
    with pytest.raises(DataError, match=f"{counts[stop]} of the .* samples read so far") as error:
        stream.step(8 * stop)
    assert error.value.where == "data.max_damage"
    stream.close()


def test_damaged_ends_of_documents_are_an_error_whatever_the_policy(tmp_path):
    write_dataset(tmp_path, train=[[1] * 100] * 20)
    (shard,) = index_of(tmp_path, PackedSplit(tmp_path, "train", 16).manifest)["text"]["train"]
    content = bytearray((tmp_path / shard.record.path).read_bytes())
    content[shard.members["docs.idx"].offset] ^= 1
    (tmp_path / shard.record.path).write_bytes(content)
    with pytest.raises(DataError, match=r"docs\.idx is damaged"):
        batch_of(PackedSplit(tmp_path, "train", 16, on_damage="skip"), 0)
    with pytest.raises(DataError, match=r"docs\.idx is damaged"):
        PackedSplit(tmp_path, "train", 16, packing="greedy", on_damage="skip")


def test_a_forgotten_document_carries_no_loss(tmp_path):
    write_dataset(tmp_path, train=[[5] * 5, [0] * 4, [7] * 6])
    split = PackedSplit(tmp_path, "train", 16)
    targets_T = batch_of(split, 0).targets_BT[0].tolist()
    assert targets_T == [*[5] * 5, 0, *[IGNORE_INDEX] * 5, *[7] * 5]


def test_sources_are_read_in_the_order_of_the_manifest(tmp_path):
    texts = {"a": [[1] * 40], "b": [[2] * 90], "c": [[3] * 3]}
    write_sources(tmp_path, {name: {"train": docs} for name, docs in texts.items()})
    split = PackedSplit(tmp_path, "train", 16)
    assert [source.total for source in split.sources] == [2, 5, 0]
    tokens_BT = batch_of(split, 6, 0, 2, 1).tokens_BT
    assert [int(row_T[-1]) for row_T in tokens_BT] == [2, 1, 2, 1]
    assert split.numbers(np.array([0, 1]), np.array([1, 4])).tolist() == [1, 6]


def layout(lengths, seq_len, packing, too_long="fail"):
    return DocumentLayout([np.cumsum(lengths)], seq_len, packing, too_long)


def rows_of(made):
    runs = made.runs(np.arange(sum(made.samples)))
    rows = [[] for _ in range(sum(made.samples))]
    for row, column, length in zip(runs.row_R, runs.column_R, runs.length_R, strict=True):
        assert column == sum(rows[row])
        rows[row].append(int(length))
    return rows


def test_greedy_keeps_the_order_and_best_fit_fills_the_rows():
    lengths = [6, 5, 4, 3, 23, 2, 7]
    assert rows_of(layout(lengths, 10, "greedy")) == [[6], [5, 4], [3], [10], [10], [3, 2], [7]]
    assert rows_of(layout(lengths, 10, "best_fit")) == [[10], [10], [7, 3], [6, 4], [5, 3, 2]]


def test_a_document_may_have_a_row_of_its_own():
    lengths = [6, 5, 23, 2, 10]
    assert rows_of(layout([6, 5, 10], 10, "single")) == [[6], [5], [10]]
    assert rows_of(layout(lengths, 10, "single", "cut")) == [[6], [5], [10], [2], [10]]
    assert rows_of(layout(lengths, 10, "single", "drop")) == [[6], [5], [2], [10]]
    assert layout(lengths, 10, "single", "drop").runs(np.array([2])).start_R.tolist() == [34]
    assert layout(lengths, 10, "single", "drop").holding(0, 33, 35) == [2]
    with pytest.raises(DataError, match="1 of 5 documents are longer than a row of 10, the longest has 23"):
        layout(lengths, 10, "single")


def test_best_fit_wastes_less_than_greedy():
    random = np.random.default_rng(1)
    lengths = random.geometric(0.02, 3000)
    least = -(-int(lengths.sum()) // 128)
    greedy, best = (sum(layout(lengths, 128, packing).samples) for packing in ("greedy", "best_fit"))
    assert least <= best <= 1.01 * least
    assert greedy > 1.1 * least


def test_padding_is_stated_and_shown(tmp_path):
    write_dataset(tmp_path, train=[[9] * 5, [8] * 7, [7] * 6])
    split = PackedSplit(tmp_path, "train", 10, packing="greedy")
    assert split.num_samples == 3
    assert split.padding == pytest.approx(9 / 30)
    batch = batch_of(split, 0)
    assert batch.segments_BT[0].tolist() == [0] * 6 + [1] * 4
    assert batch.targets_BT[0].tolist() == [9] * 5 + [0] + [IGNORE_INDEX] * 4
    assert "4 tokens without text or loss" in describe_batch(batch, byte_tokenizer(), ["a sample 0"])
    assert "· a sample 0 ·" in describe_batch(batch, byte_tokenizer(), ["a sample 0"])
    assert PackedSplit(tmp_path, "train", 10).padding == 0.0


def test_a_row_across_shards_is_one_text(tmp_path):
    documents = [[10 * n + k for k in range(1, 9)] for n in range(12)]
    manifest = write_dataset(tmp_path, train=documents, shard_bytes=60)
    assert len(manifest.splits["train"].shards) == 4
    split = PackedSplit(tmp_path, "train", 50)
    stream = [token for ids in documents for token in [0, *ids]]
    batch = batch_of(split, 0, 1)
    assert batch.tokens_BT.ravel().tolist() == stream[:100]
    assert batch.targets_BT.ravel().tolist() == stream[1:101]
    opens = [place for place, (a, b) in enumerate(pairwise(batch.segments_BT[0].tolist()), 1) if b > a]
    assert opens == [9, 18, 27, 36, 45]
