"""Splits of documents with several fields: damage, sources, shards, and what people see of them."""

import json

import numpy as np
import pytest
from prepared import byte_tokenizer, write_sources

from distllm.config.schema import Config, DataConfig, TaskConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.batch import IGNORE_INDEX, Batch, Source
from distllm.data.digest import batch_digest
from distllm.data.examples.records import ShardRecords
from distllm.data.inspect import describe_batch
from distllm.data.manifest import Manifest
from distllm.data.open import open_split
from distllm.data.order import SampleOrder
from distllm.data.shards import index_of
from distllm.data.stream import StepStream
from distllm.data.tokenizer import Tokenizer
from distllm.errors import DataError

T, S = 32, 24
TOKENIZER = byte_tokenizer()
PAIR = ("source", "target")
U2 = np.dtype("<u2")


def config_of(root, task="seq2seq", family="encoder_decoder", **data):
    data = {"seq_len": T, "source_len": S, **data}
    config = Config(data=DataConfig(out=str(root), **data), task=TaskConfig(name=task))
    object.__setattr__(config.model, "family", family)
    return config


def pairs(count, start=0):
    return [
        ([1 + (start + i) % 250] * (2 + i % 5), [1 + (start + i) % 250] * (1 + i % 7)) for i in range(count)
    ]


@pytest.fixture
def dataset(tmp_path):
    root = tmp_path / "data"
    write_sources(
        root, {"pairs": {"train": pairs(60), "valid": pairs(3)}}, shard_bytes=200, fields={"pairs": PAIR}
    )
    return root


def all_rows(split):
    numbers = np.arange(split.num_samples)
    return split.batch(numbers, numbers)


def shards_of(root):
    return index_of(root, Manifest.load(root))["pairs"]["train"]


def flip(root, number, member="target.bin"):
    shard = shards_of(root)[number]
    content = bytearray((root / shard.record.path).read_bytes())
    content[shard.members[member].offset] ^= 1
    (root / shard.record.path).write_bytes(content)


def test_rows_do_not_cross_shards_and_count_for_the_shard_they_are_in(dataset):
    split = open_split(config_of(dataset), "train")
    (source,) = split.sources
    assert len(source.shards) == len(shards_of(dataset)) > 2
    assert sum(source.shards) == split.num_samples
    assert split.num_examples == 60
    assert split.num_tokens == Manifest.load(dataset).splits["train"].tokens


def test_a_damaged_block_is_an_error_that_names_the_shard(dataset):
    flip(dataset, 1)
    split = open_split(config_of(dataset), "train")
    first = split.sources[0].shards[0]
    split.batch(np.arange(first), np.arange(first))
    with pytest.raises(DataError, match=r"pairs/train/00001\.tar: block 0 of target\.bin"):
        split.batch(np.array([first]), np.array([0]))


def test_skipped_damage_is_rows_without_loss_that_are_counted(dataset):
    whole = all_rows(open_split(config_of(dataset), "train"))
    flip(dataset, 1)
    split = open_split(config_of(dataset, on_damage="skip"), "train")
    numbers = np.arange(split.num_samples)
    batch, damaged = split.read(numbers, numbers)
    first, lost = split.sources[0].shards[0], split.sources[0].shards[1]
    silent = np.flatnonzero((batch.targets_BT == IGNORE_INDEX).all(axis=1))
    assert silent.tolist() == list(range(first, first + lost))
    assert damaged == lost
    kept = np.setdiff1d(numbers, silent)
    assert np.array_equal(batch.tokens_BT[kept], whole.tokens_BT[kept])


@pytest.mark.parametrize("member", ["source.idx", "blocks.idx"])
def test_damage_of_the_small_members_is_found_when_the_split_is_opened(dataset, member):
    flip(dataset, 0, member)
    with pytest.raises(DataError, match=member):
        open_split(config_of(dataset, on_damage="skip"), "train")


def test_samples_outside_the_split_are_refused(dataset):
    split = open_split(config_of(dataset), "train")
    with pytest.raises(IndexError):
        split.batch(np.array([split.num_samples]), np.array([0]))
    with pytest.raises(IndexError):
        split.batch(np.array([-1]), np.array([0]))


def test_the_rows_that_hold_a_document_are_found_by_its_ids(dataset):
    split = open_split(config_of(dataset), "train")
    for number, shard in enumerate(shards_of(dataset)):
        records = ShardRecords(dataset, shard, PAIR, U2)
        starts = np.cumsum(records.sizes["source"]) - records.sizes["source"]
        for row in range(shard.record.documents):
            start = int(starts[row])
            (sample,) = split.samples_with(0, number, start, start + int(records.sizes["source"][row]))
            batch = split.batch(np.array([sample]), np.array([0]))
            assert records.read(row)["source"][0] in batch.source.tokens_BS[0]
            assert records.read(row)["target"][0] in batch.targets_BT[0]


def test_two_sources_are_numbered_one_after_the_other(tmp_path):
    root = tmp_path / "data"
    sources = {
        "first": {"train": pairs(9), "valid": pairs(1)},
        "second": {"train": pairs(14, start=100), "valid": pairs(1)},
    }
    write_sources(root, sources, fields={"first": PAIR, "second": PAIR})
    split = open_split(config_of(root), "train")
    sizes = [source.total for source in split.sources]
    numbers = split.numbers(np.array([0, 1, 1]), np.array([1, 0, 2]))
    assert numbers.tolist() == [1, sizes[0], sizes[0] + 2]
    batch = all_rows(split)
    assert batch.tokens_BT[: sizes[0]].max() < 100 < batch.tokens_BT[sizes[0] :].max()


def test_instruct_mixes_conversations_questions_and_pairs(tmp_path):
    encode, root = TOKENIZER.encode, tmp_path / "data"
    talk = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "TALK"}])
    answer = json.dumps([{"text": "ANSWER", "start": 0}])
    sources = {
        "chat": {"train": [(encode(talk),)], "valid": [(encode(talk),)]},
        "qa": {"train": [tuple(map(encode, ("ANSWER x", "q", answer)))], "valid": []},
        "pairs": {"train": [tuple(map(encode, ("src", "TARGET")))], "valid": []},
    }
    fields = {"chat": ("messages",), "qa": ("context", "question", "answers"), "pairs": PAIR}
    write_sources(root, sources, fields=fields)
    split = open_split(config_of(root, "instruct", "decoder", seq_len=128), "train")
    batch = all_rows(split)
    told = [TOKENIZER.decode(row[row != IGNORE_INDEX].tolist()) for row in batch.targets_BT]
    assert told == ["TALK<|im_end|>", "TARGET<|endoftext|>", "ANSWER<|endoftext|>"]
    valid = open_split(config_of(root, "instruct", "decoder", seq_len=128), "valid")
    assert [source.total for source in valid.sources] == [1, 0, 0]


def test_the_text_of_both_sides_can_be_shown(tmp_path):
    root = tmp_path / "data"
    held = [(TOKENIZER.encode("hello"), TOKENIZER.encode("bonjour"))] * 2
    write_sources(root, {"pairs": {"train": held, "valid": held}}, fields={"pairs": PAIR})
    batch = all_rows(open_split(config_of(root), "train"))
    text = describe_batch(batch, TOKENIZER)
    assert text.count("hello<|endoftext|>") == 2
    assert text.count("\nbonjour\n") == 2
    assert text.index("--- source 1 of 3") < text.index("--- document 1 of 3") < text.index("--- source 2")
    assert "16 scored" in text


def test_the_digest_of_a_batch_tells_sources_apart(dataset):
    split = open_split(config_of(dataset), "train")
    batch = all_rows(split)
    before = batch_digest([batch])
    assert before == batch_digest([batch[:3], batch[3:]])
    batch.source.tokens_BS[2, 0] ^= 1
    assert batch_digest([batch]) != before


def test_rows_of_a_batch_can_be_chosen():
    tokens = np.arange(12, dtype=np.int32).reshape(3, 4)
    batch = Batch(tokens, tokens, tokens, tokens, np.arange(3), Source(tokens, tokens, tokens))
    assert batch.rows(1, 3).sample_ids_B.tolist() == [1, 2]
    assert batch[[2, 0]].source.tokens_BS[:, 0].tolist() == [8, 0]
    assert np.shares_memory(batch[1:].tokens_BT, tokens)
    assert Batch(tokens, tokens, tokens, tokens, np.arange(3))[:2].source is None


def test_damage_beyond_what_is_allowed_stops_the_stream(dataset):
    flip(dataset, 0)
    split = open_split(config_of(dataset, on_damage="skip"), "train")
    rows = split.num_samples
    lost = split.sources[0].shards[0]
    settings = {"sequences_per_step": rows, "micro_batch_size": 1, "rank": 0, "world_size": 1}
    order = SampleOrder.single(rows, seed=0)
    stream = StepStream(split, order, **settings, max_damage=lost / rows)
    stream.step(0)
    assert stream.damaged == lost
    stream.close()
    stream = StepStream(split, order, **settings, max_damage=0.0)
    if lost > 1:
        with pytest.raises(DataError, match="lie in damaged blocks"):
            stream.step(0)
    stream.close()


def test_special_tokens_are_found_by_name_and_ordinary_ones_are_not():
    tokenizer = Tokenizer.train(
        ["mask mask mask"], TokenizerConfig(vocab_size=300, special_tokens=("<|m|>",))
    )
    assert tokenizer.special_ids(["<|m|>"]) == [tokenizer.encode("")[0] if tokenizer.encode("") else 1]
    assert tokenizer.special_ids(["<|m|>", "mask"]) == []
    assert tokenizer.special_ids(["nothing"]) == []


def test_words_begin_where_a_space_does():
    tokenizer = Tokenizer.train(["the cat the cat the mat"] * 9, TokenizerConfig(vocab_size=280))
    starts = tokenizer.word_starts()
    ids = tokenizer.encode("cat mat catmat")
    words, current = [], []
    for id_ in ids:
        if starts[id_] and current:
            words.append(tokenizer.decode(current))
            current = []
        current.append(id_)
    words.append(tokenizer.decode(current))
    assert words == ["cat", " mat", " catmat"]
    assert starts[tokenizer.eot_id]


def test_padding_is_the_share_of_positions_without_an_example(dataset):
    split = open_split(config_of(dataset), "train")
    batch = all_rows(split)
    filled = sum(
        int((segments < segments.max()).sum()) if (targets[segments == segments.max()] < 0).all() else T
        for segments, targets in zip(batch.segments_BT, batch.targets_BT, strict=True)
    )
    assert split.padding == pytest.approx(1 - filled / batch.tokens_BT.size)
    assert 0 < split.padding < 0.5


def test_a_split_without_any_example_is_refused(dataset):
    with pytest.raises(DataError, match="no example that fits a row"):
        open_split(config_of(dataset, seq_len=2, source_len=2, too_long="drop"), "train")
