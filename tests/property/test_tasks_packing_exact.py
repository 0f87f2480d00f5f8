"""Every task that packs: changing one document changes no bit of what the model says of another."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import byte_tokenizer, write_sources

from distllm.config.schema import Config, DataConfig, ModelConfig, TaskConfig
from distllm.config.shape import settle_shape
from distllm.data.corrupt import Masking, SpanCorruption
from distllm.data.open import open_split
from distllm.data.stream import PackedSplit
from distllm.models.heads import head_of
from distllm.models.init import build_model

TOKENIZER = byte_tokenizer()
VOCAB, EOT, ENCODE = TOKENIZER.vocab_size, TOKENIZER.eot_id, TOKENIZER.encode
MASK, SENTINELS = VOCAB, (VOCAB, VOCAB + 1, VOCAB + 2, VOCAB + 3)
ROW, DOCUMENTS, CHANGED = 320, 24, 16
"""The last documents of a text may be in no row."""
FIELDS = {
    "text": ("text",),
    "pairs": ("source", "target"),
    "qa": ("context", "question", "answers"),
    "chat": ("messages",),
    "preferences": ("prompt", "chosen", "rejected"),
}
# What is packed of which documents, by which family, and how many texts of rows a document is at most.
CASES = {
    "causal_lm": ("text", "decoder", 2),
    "masked_lm": ("text", "encoder", 2),
    "masked_lm of words": ("text", "encoder", 2),
    "span_corruption": ("text", "encoder_decoder", 2),
    "seq2seq": ("pairs", "encoder_decoder", 1),
    "seq2seq by a decoder": ("pairs", "decoder", 1),
    "instruct in pairs": ("pairs", "decoder", 1),
    "instruct in questions": ("qa", "decoder", 1),
    "instruct in conversations": ("chat", "decoder", 1),
    "extractive_qa": ("qa", "encoder", 1),
    "dpo": ("preferences", "decoder", 2),
}


def words(numbers, length):
    """Return so many letters and blanks."""
    return "".join(numbers.choice(list("abcdefgh  "), length - 1)) + "."


def document(kind, number, contents):
    """Return a document whose size follows from its number, and whose words from the generator."""
    size = 18 + 5 * (number % 4)
    if kind == "qa":
        context = words(contents, 2 * size)
        answer = {"text": context[2:6], "start": 2}
        return tuple(map(ENCODE, (context, words(contents, 6), json.dumps([answer]))))
    if kind == "chat":
        said = [("user", words(contents, 6)), ("assistant", words(contents, 6))]
        return (ENCODE(json.dumps([{"role": role, "content": text} for role, text in said])),)
    texts = [ENCODE(words(contents, size + 3 * field)) for field in range(len(FIELDS[kind]))]
    return [*texts[0], *texts[0]] if kind == "text" else tuple(texts)


def rows_of(root, task, kind, family, changed, seed):
    """Return all rows of a dataset in which the document ``changed`` has other words, or none has."""
    documents = [
        document(kind, number, np.random.default_rng([number, seed if number == changed else 0]))
        for number in range(DOCUMENTS)
    ]
    place = root / f"{changed}-{seed}"
    if not place.exists():
        write_sources(place, {kind: {"train": documents}}, fields={kind: FIELDS[kind]})
    if kind == "text" and task != "causal_lm":
        split = PackedSplit(place, "train", ROW, corrupt=hiding(task))
    else:
        data = DataConfig(out=str(place), seq_len=ROW)
        config = Config(
            model=ModelConfig(family=family), data=data, task=TaskConfig(name=task.split()[0], stride=8)
        )
        split = open_split(config, "train")
    every_B = np.arange(split.num_samples)
    return split.batch(every_B, every_B)


def hiding(task):
    """Return what hides part of a text."""
    if task == "span_corruption":
        return SpanCorruption(
            seed=0, fraction=0.3, mean_span=3.0, sentinel_ids=SENTINELS, eot_id=EOT, row_len=ROW
        )
    starts_V = np.arange(VOCAB) == ENCODE(" ")[0]
    return Masking(
        seed=0, fraction=0.3, mask_id=MASK, eot_id=EOT, vocab_size=VOCAB,
        word_starts_V=starts_V if task.endswith("words") else None,
    )  # fmt: skip


def sides(batch):
    """Return ids, positions and segments of the decoder, after those of the source if there is one."""
    own = (batch.tokens_BT, batch.positions_BT, batch.segments_BT)
    source = batch.source
    return own if source is None else (source.tokens_BS, source.positions_BS, source.segments_BS, *own)


def parts(positions):
    """Return for each position the number of its text in the row; texts begin at position 0."""
    return np.cumsum(positions == 0, axis=1)


def touched(before, after):
    """Return row and number of every text whose ids, targets or source differ."""
    own = parts(before.positions_BT)
    held = [(before.tokens_BT, after.tokens_BT, own), (before.targets_BT, after.targets_BT, own)]
    if before.source is not None:
        read = parts(before.source.positions_BS)
        held.append((before.source.tokens_BS, after.source.tokens_BS, read))
    return {
        (int(row), int(part[row, at]))
        for old, new, part in held
        for row, at in zip(*np.nonzero(old != new), strict=True)
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return SimpleNamespace(root=tmp_path_factory.mktemp("packing"), models={})


def model_of(place, task, family):
    """Return a model of this family with the task's head, whose logits are far from even."""
    if task not in place.models:
        config = ModelConfig(family=family, hidden_size=16, num_layers=2, num_heads=2, init_std=0.4)
        shape = settle_shape(config, VOCAB + len(SENTINELS), ROW + 2)
        place.models[task] = build_model(shape, 0, head=head_of(task.split()[0])).eval()
    return place.models[task]


@pytest.mark.parametrize("task", CASES)
@settings(max_examples=6, deadline=None)
@given(changed=st.integers(0, CHANGED - 1), seed=st.integers(1, 99))
def test_a_document_changes_no_bit_of_the_logits_of_another(place, task, changed, seed):
    kind, family, most = CASES[task]
    root = place.root / kind
    root.mkdir(exist_ok=True)
    before, after = (rows_of(root, task, kind, family, number, seed) for number in (None, changed))
    assert np.array_equal(before.positions_BT, after.positions_BT)
    own = touched(before, after)
    assert 1 <= len(own) <= most
    model = model_of(place, task, family)
    with torch.no_grad():
        old_BTV, new_BTV = (model(*map(torch.from_numpy, sides(rows))) for rows in (before, after))
    part_BT = parts(before.positions_BT)
    mine_BT = np.zeros_like(part_BT, dtype=bool)
    for row, number in own:
        mine_BT[row] |= part_BT[row] == number
    neighbours_BT = ~mine_BT[sorted({row for row, _ in own})]
    assert neighbours_BT.sum() > 10
    assert torch.equal(old_BTV[~mine_BT], new_BTV[~mine_BT])
    assert not torch.equal(old_BTV[mine_BT], new_BTV[mine_BT])
