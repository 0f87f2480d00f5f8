"""Masked tokens and hidden spans: pure functions of seed and sample, and nothing is lost."""

from dataclasses import replace

import numpy as np
import pytest
from prepared import write_dataset

from distllm.config.schema import Config, DataConfig, TaskConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data import open as opening
from distllm.data.batch import IGNORE_INDEX
from distllm.data.corrupt import Masking, SpanCorruption
from distllm.data.open import open_split
from distllm.data.stream import PackedSplit
from distllm.data.tokenizer import Tokenizer
from distllm.errors import ConfigError

SEQ, MASK, SENTINELS = 64, 300, list(range(400, 420))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("corrupt") / "data"
    numbers = np.random.default_rng(0)
    documents = [numbers.integers(1, 257, int(numbers.integers(5, 120))).tolist() for _ in range(60)]
    write_dataset(root, train=documents, valid=documents[:3])
    return root


def masking(**more):
    settings = {"seed": 1, "fraction": 0.15, "mask_id": MASK, "eot_id": 0, "word_starts_V": None}
    return Masking(**{**settings, "vocab_size": 257, **more})


def spans(**more):
    settings = {"seed": 1, "fraction": 0.15, "mean_span": 3.0, "sentinel_ids": SENTINELS, "eot_id": 0}
    return SpanCorruption(**{**settings, "row_len": SEQ, **more})


def read(split, rows=None, first=0):
    numbers = np.arange(split.num_samples if rows is None else rows)
    return split.batch(numbers, numbers + first)


def test_masked_targets_are_what_was_hidden(dataset):
    plain = read(PackedSplit(dataset, "train", SEQ))
    masked = read(PackedSplit(dataset, "train", SEQ, corrupt=masking()))
    chosen = masked.targets_BT != IGNORE_INDEX
    assert np.array_equal(masked.targets_BT[chosen], plain.tokens_BT[chosen])
    assert np.array_equal(masked.tokens_BT[~chosen], plain.tokens_BT[~chosen])
    assert not (masked.targets_BT == 0).any()  # the EOT between documents is never hidden
    assert 0.12 < chosen.mean() < 0.18
    fates = masked.tokens_BT[chosen]
    kept = (fates == plain.tokens_BT[chosen]).mean()
    assert 0.72 < (fates == MASK).mean() < 0.88
    assert 0.05 < kept < 0.16


def test_what_is_hidden_follows_from_seed_and_sample_alone(dataset):
    split = PackedSplit(dataset, "train", SEQ, corrupt=masking())
    whole = read(split, 8)
    for row in (5, 2):
        alone = split.batch(np.array([row]), np.array([row]))
        assert np.array_equal(alone.tokens_BT[0], whole.tokens_BT[row])
    assert not np.array_equal(read(split, 8, first=100).tokens_BT, whole.tokens_BT)
    other = PackedSplit(dataset, "train", SEQ, corrupt=masking(seed=2))
    assert not np.array_equal(read(other, 8).tokens_BT, whole.tokens_BT)


def test_whole_words_are_hidden_together(dataset):
    starts = np.zeros(257, dtype=bool)
    starts[:60] = True
    masked = read(PackedSplit(dataset, "train", SEQ, corrupt=masking(word_starts_V=starts, fraction=0.4)))
    plain = read(PackedSplit(dataset, "train", SEQ))
    chosen = masked.targets_BT != IGNORE_INDEX
    inside = ~starts[plain.tokens_BT[:, 1:]] & (np.diff(plain.segments_BT) == 0)
    inside &= (plain.tokens_BT[:, 1:] != 0) & (plain.tokens_BT[:, :-1] != 0)
    assert np.array_equal(chosen[:, 1:][inside], chosen[:, :-1][inside])
    assert 0.2 < chosen.mean() < 0.6


def restored(source, target):
    """Put the spans of a target back into its source."""
    hidden, current = {}, None
    for id_ in target:
        if id_ in SENTINELS:
            current = id_
            hidden[current] = []
        else:
            hidden[current].append(id_)
    return [id_ for part in source for id_ in hidden.get(part, [part])], hidden


def test_spans_can_be_put_back_and_stay_in_their_document(dataset):
    plain = read(PackedSplit(dataset, "train", SEQ))
    split = PackedSplit(dataset, "train", SEQ, corrupt=spans())
    batch = read(split)
    hidden_ids = all_ids = 0
    for row in range(split.num_samples):
        borders = np.flatnonzero(np.diff(plain.segments_BT[row])) + 1
        texts = [part[part != 0].tolist() for part in np.split(plain.tokens_BT[row], borders)]
        texts = [text for text in texts if len(text) >= 16]
        for number, text in enumerate(texts):
            source = batch.source.tokens_BS[row][batch.source.segments_BS[row] == number].tolist()
            here = batch.segments_BT[row] == number
            target = batch.targets_BT[row][here].tolist()
            assert source[-1] == target[-1] == 0 == batch.tokens_BT[row][here][0]
            assert batch.tokens_BT[row][here][1:].tolist() == target[:-1]
            back, hidden = restored(source[:-1], target[:-1])
            assert back == text
            assert list(hidden) == SENTINELS[: len(hidden)]
            assert all(hidden.values())
            hidden_ids += sum(map(len, hidden.values()))
            all_ids += len(text)
        assert batch.segments_BT[row].max() == len(texts)
    assert 0.12 < hidden_ids / all_ids < 0.19
    assert batch.tokens_BT.shape[1] == spans().width < SEQ
    assert np.array_equal(read(split, 3).source.tokens_BS, batch.source.tokens_BS[:3])


@pytest.mark.parametrize(("task", "token"), [("masked_lm", "<|mask|>"), ("span_corruption", "<extra_id_0>")])
def test_a_tokenizer_without_the_token_is_refused(dataset, task, token):
    config = Config(data=DataConfig(out=str(dataset), seq_len=SEQ), task=TaskConfig(name=task))
    with pytest.raises(ConfigError, match=f"task.name={task} needs special tokens") as raised:
        open_split(config, "train")
    assert token in raised.value.remedy


def test_the_configured_task_hides_what_its_tokenizer_names(dataset, monkeypatch):
    names = ("<|mask|>", "<extra_id_0>", "<extra_id_1>", "<extra_id_2>")
    tokenizer = Tokenizer.train([], TokenizerConfig(vocab_size=262, special_tokens=names))
    monkeypatch.setattr(opening.Tokenizer, "load", lambda _: tokenizer)
    config = Config(data=DataConfig(out=str(dataset), seq_len=SEQ), task=TaskConfig(name="masked_lm"))
    masked = read(open_split(config, "train"))
    assert tokenizer.special_ids(["<|mask|>"])[0] in masked.tokens_BT
    words = read(open_split(replace(config, task=TaskConfig(name="masked_lm", whole_word=True)), "train"))
    assert not np.array_equal(words.tokens_BT, masked.tokens_BT)
    hidden = open_split(replace(config, task=TaskConfig(name="span_corruption")), "train")
    assert read(hidden).source.tokens_BS.shape[1] == SEQ
    assert set(tokenizer.special_ids(list(names[1:]))) & set(read(hidden).targets_BT.ravel().tolist())
