"""Every task: however the rows of a step are cut into micro-batches, loss and gradient are the same."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from fakes import FakeDecoder, FakeEncoder, FakeEncoderDecoder
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import byte_tokenizer, write_sources

from distllm.config.schema import Config, DataConfig, TaskConfig
from distllm.data.open import open_split
from distllm.dist.topology import Topology
from distllm.tasks.contrastive import Contrastive
from distllm.tasks.dpo import DPO
from distllm.tasks.extractive_qa import ExtractiveQA
from distllm.tasks.seq2seq import Seq2Seq

VOCAB = byte_tokenizer().vocab_size
ROWS = 6
WORDS = ["cat", "dog", "mat", "sat", "ran", "fog", "sea", "sun"]


def texts(numbers, low, high):
    return " ".join(numbers.choice(WORDS, numbers.integers(low, high)))


def documents(kind, numbers):
    encode = byte_tokenizer().encode
    if kind == "qa":
        context = texts(numbers, 4, 9)
        word = str(numbers.choice(context.split()))
        answers = [{"text": word, "start": context.index(word)}] if numbers.random() < 0.8 else []
        return tuple(map(encode, (context, texts(numbers, 1, 2), json.dumps(answers))))
    fields = 3 if kind == "preferences" else 2
    return tuple(encode(texts(numbers, 1, 4)) for _ in range(fields))


FIELDS = {
    "pairs": ("source", "target"),
    "qa": ("context", "question", "answers"),
    "preferences": ("prompt", "chosen", "rejected"),
}


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    root, numbers = tmp_path_factory.mktemp("partition"), np.random.default_rng(0)
    for kind, fields in FIELDS.items():
        held = [documents(kind, numbers) for _ in range(40)]
        write_sources(root / kind, {kind: {"train": held, "valid": held[:2]}}, fields={kind: fields})

    def split(kind, task, family="decoder"):
        config = Config(
            data=DataConfig(out=str(root / kind), seq_len=64), task=TaskConfig(name=task, stride=8)
        )
        object.__setattr__(config.model, "family", family)
        return open_split(config, "train")

    return {
        "seq2seq": split("pairs", "seq2seq", "encoder_decoder"),
        "extractive_qa": split("qa", "extractive_qa"),
        "contrastive": split("pairs", "contrastive"),
        "dpo": split("preferences", "dpo"),
    }


def build(name):
    torch.manual_seed(0)
    if name == "seq2seq":
        return Seq2Seq(VOCAB), FakeEncoderDecoder(VOCAB)
    if name == "extractive_qa":
        return ExtractiveQA(VOCAB), FakeEncoder(VOCAB, "span")
    if name == "contrastive":
        return Contrastive(VOCAB, 0.5), FakeEncoder(VOCAB, "embedding", dropout=0.0)
    return DPO(VOCAB, 0.5, FakeDecoder(VOCAB), nll_weight=0.5), FakeDecoder(VOCAB)


def step(name, batches):
    task, model = build(name)
    weight = sum(map(task.weight, batches))
    task.begin(model, batches, Topology.single())
    total = 0.0
    for batch in batches:
        loss = task.loss_sum(model, batch)
        (loss / weight).backward()
        total += float(loss.detach())
    return (
        weight,
        total / weight,
        torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]),
    )


@pytest.mark.parametrize("name", ["seq2seq", "extractive_qa", "contrastive", "dpo"])
@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(ROWS)), cuts=st.sets(st.integers(1, ROWS - 1)), first=st.integers(0, 4))
def test_any_partition_gives_the_same_loss_and_gradient(splits, name, order, cuts, first):
    split = splits[name]
    rows = (np.arange(ROWS) + first) % split.num_samples
    batch = split.batch(rows, np.arange(ROWS))
    bounds = [0, *sorted(cuts), ROWS]
    weight, loss, gradient = step(name, [batch[list(order[a:b])] for a, b in pairwise(bounds)])
    whole_weight, whole_loss, whole_gradient = step(name, [batch])
    assert weight == whole_weight > 0
    assert loss == pytest.approx(whole_loss, abs=1e-5)
    torch.testing.assert_close(gradient, whole_gradient, rtol=1e-4, atol=1e-6)
    assert float(whole_gradient.abs().max()) > 1e-5


def test_the_gradient_is_that_of_the_plain_contrastive_loss(splits):
    """What GradCache carries back equals autograd through one big matrix of similarities."""
    batch = splits["contrastive"].batch(np.arange(ROWS), np.arange(ROWS))
    _, loss, gradient = step("contrastive", [batch[:2], batch[2:3], batch[3:]])
    task, model = build("contrastive")
    query, passage = task._embed(model, batch)
    plain = torch.nn.functional.cross_entropy(query @ passage.T / task.temperature, torch.arange(ROWS))
    plain.backward()
    assert loss == pytest.approx(float(plain.detach()), abs=1e-5)
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_dropout_is_the_same_in_both_passes(splits):
    batch = splits["contrastive"].batch(np.arange(ROWS), np.arange(ROWS))
    torch.manual_seed(0)
    model, task, seen = FakeEncoder(VOCAB, "embedding", dropout=0.5), Contrastive(VOCAB, 0.5), []
    embed = task._embed
    task._embed = lambda *a: seen.append(embed(*a)) or seen[-1]
    task.begin(model, [batch[:3], batch[3:]], Topology.single())
    torch.rand(7)  # whatever else draws numbers in between
    for part in (batch[3:], batch[:3]):
        task.loss_sum(model, part)
    for first, again in ((0, 3), (1, 2)):
        assert torch.equal(seen[first][0], seen[again][0].detach())
    assert not torch.equal(seen[0][0], seen[1][0])


def test_dpo_begins_at_log_two_and_falls_when_the_preferred_answer_gains(splits):
    batch = splits["dpo"].batch(np.arange(ROWS), np.arange(ROWS))
    torch.manual_seed(0)
    reference, model = FakeDecoder(VOCAB), FakeDecoder(VOCAB)
    model.load_state_dict(reference.state_dict())
    task = DPO(VOCAB, 0.5, reference)
    pairs = task.weight(batch)
    assert (
        pairs
        == sum(  # every answer has targets, and every second one is preferred
            len(set(segments[targets >= 0].tolist()))
            for segments, targets in zip(batch.segments_BT, batch.targets_BT, strict=True)
        )
        / 2
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        loss = task.loss_sum(model, batch) / pairs
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(np.log(2), abs=1e-6)
    assert losses == sorted(losses, reverse=True)
