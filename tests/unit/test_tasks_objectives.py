"""Objectives beyond the next token: their losses against plain loops, and what they refuse."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from fakes import FakeDecoder, FakeEncoder, FakeEncoderDecoder

from distllm.config.schema import Config, TaskConfig
from distllm.config.schema_task import TaskName
from distllm.config.shape import settle_shape
from distllm.data.batch import IGNORE_INDEX, Batch, Source
from distllm.data.examples.windows import END, START
from distllm.dist.topology import Topology
from distllm.errors import DataError
from distllm.tasks.causal_lm import CausalLM
from distllm.tasks.contrastive import Contrastive
from distllm.tasks.dpo import DPO
from distllm.tasks.extractive_qa import ExtractiveQA
from distllm.tasks.registry import build_task
from distllm.tasks.segments import segment_log_softmax, segment_numbers, segment_sum
from distllm.tasks.seq2seq import Seq2Seq

VOCAB, LENGTH = 20, 8


def batch_of(targets, segments, tokens=None, source=None):
    segments = np.array(segments, dtype=np.int32)
    rows, length = segments.shape
    opens = np.diff(segments, axis=1, prepend=-1) != 0
    places = np.broadcast_to(np.arange(length), segments.shape)
    positions = places - np.maximum.accumulate(np.where(opens, places, 0), axis=1)
    if tokens is None:
        tokens = 1 + np.arange(rows * length).reshape(rows, length) % (VOCAB - 1)
    return Batch(
        tokens_BT=np.array(tokens, dtype=np.int32),
        targets_BT=np.array(targets, dtype=np.int32),
        positions_BT=positions.astype(np.int32),
        segments_BT=segments,
        sample_ids_B=np.arange(rows),
        source=source,
    )


SEGMENTS = [[0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0, 1, 1]]


def test_sums_and_softmaxes_of_segments_are_those_of_plain_loops():
    numbers = np.random.default_rng(0)
    scores = torch.tensor(numbers.normal(size=(2, LENGTH)))
    allowed = torch.tensor(numbers.random((2, LENGTH)) < 0.6)
    allowed[:, 0] = True
    segments = torch.tensor(SEGMENTS)
    number, count = segment_numbers(segments)
    assert count == 6
    sums = segment_sum(scores, number, count)
    log_p = segment_log_softmax(scores, allowed, number, count)
    for row in range(2):
        for segment in range(int(segments[row].max()) + 1):
            here = segments[row] == segment
            assert sums[row * 3 + segment] == pytest.approx(float(scores[row][here].sum()))
            chosen = here & allowed[row]
            expected = scores[row][chosen].log_softmax(0)
            torch.testing.assert_close(log_p[row][chosen], expected)


def test_a_segment_without_candidates_gives_no_nan_in_the_gradient():
    scores = torch.zeros((2, LENGTH), requires_grad=True)
    allowed = torch.zeros((2, LENGTH), dtype=torch.bool)
    allowed[0, :3] = True
    log_p = segment_log_softmax(scores, allowed, *segment_numbers(torch.tensor(SEGMENTS)))
    log_p[0, 1].backward()
    assert torch.isfinite(scores.grad).all()
    assert float(log_p[0, 1]) == pytest.approx(-math.log(3))


def qa_batch():
    flags = np.full((2, LENGTH), IGNORE_INDEX)
    flags[0, :3] = [0, START, END]
    flags[0, 3:6] = [START + END, 0, 0]
    flags[1, :6] = [0, 0, 0, START, 0, END]
    return batch_of(flags, SEGMENTS)


def test_the_loss_of_an_answer_is_the_mean_of_start_and_end_over_the_window():
    torch.manual_seed(0)
    model, task, batch = FakeEncoder(VOCAB, "span"), ExtractiveQA(VOCAB), qa_batch()
    arrays = (batch.tokens_BT, batch.positions_BT, batch.segments_BT)
    logits = model(*map(torch.from_numpy, arrays)).detach()
    expected = 0.0
    for row, segment, start, end in ((0, 0, 1, 2), (0, 1, 3, 3), (1, 0, 3, 5)):
        here = np.flatnonzero(
            (batch.segments_BT[row] == segment) & (batch.targets_BT[row] != IGNORE_INDEX)
        ).tolist()
        for side, place in ((0, start), (1, end)):
            log_p = logits[row, here, side].log_softmax(0)
            expected -= float(log_p[here.index(place)]) / 2
    assert task.weight(batch) == 3
    assert float(task.loss_sum(model, batch).detach()) == pytest.approx(expected, rel=1e-5)


def test_padding_and_question_take_no_probability():
    torch.manual_seed(0)
    model, task, batch = FakeEncoder(VOCAB, "span"), ExtractiveQA(VOCAB), qa_batch()
    before = float(task.loss_sum(model, batch).detach())
    batch.tokens_BT[:, 6:] = 7  # padding segments
    assert float(task.loss_sum(model, batch).detach()) == pytest.approx(before, rel=1e-6)
    batch.tokens_BT[0, 1] = 9
    assert float(task.loss_sum(model, batch).detach()) != pytest.approx(before, rel=1e-6)


def source_of(tokens):
    tokens = np.array(tokens, dtype=np.int32)
    segments = np.zeros_like(tokens)
    segments[:, -1] = 1
    return Source(tokens, np.zeros_like(tokens), segments)


def pair_batch():
    targets = np.full((2, LENGTH), IGNORE_INDEX)
    targets[:, 0] = 0
    return batch_of(targets, [[0] * 6 + [1] * 2] * 2, source=source_of([[1, 2, 3], [4, 5, 6]]))


def targets_batch():
    targets = np.full((2, LENGTH), IGNORE_INDEX)
    targets[0, 1:6], targets[1, 2:6] = [4, 5, 6, 7, 8], [3, 4, 5, 6]
    return batch_of(targets, SEGMENTS, source=source_of([[1, 2, 3], [4, 5, 6]]))


CASES = {
    "causal_lm": (lambda: CausalLM(VOCAB, mask_documents=True), lambda: FakeDecoder(64), targets_batch),
    "seq2seq": (lambda: Seq2Seq(VOCAB), lambda: FakeEncoderDecoder(64), targets_batch),
    "extractive_qa": (lambda: ExtractiveQA(VOCAB), lambda: FakeEncoder(64, "span"), qa_batch),
    "contrastive": (lambda: Contrastive(VOCAB, 0.1), lambda: FakeEncoder(64, "embedding"), pair_batch),
    "dpo": (lambda: DPO(VOCAB, 0.1, FakeDecoder(64)), lambda: FakeDecoder(64), targets_batch),
}


def loss_of(name, batch):
    task, model = CASES[name][0](), CASES[name][1]()
    task.begin(model, [batch], Topology.single())
    return task.loss_sum(model, batch)


@pytest.mark.parametrize("name", CASES)
def test_an_id_that_the_model_does_not_know_is_named(name):
    batch = CASES[name][2]()
    assert math.isfinite(float(loss_of(name, batch).detach()))
    batch.tokens_BT[1, 2] = VOCAB + 3
    with pytest.raises(DataError, match=f"token id {VOCAB + 3} is outside the model's vocabulary of {VOCAB}"):
        loss_of(name, batch)


@pytest.mark.parametrize("name", ["seq2seq", "contrastive"])
def test_so_is_one_of_the_source(name):
    batch = CASES[name][2]()
    batch.source.tokens_BS[0, 1] = VOCAB
    with pytest.raises(DataError, match=f"token id {VOCAB} is outside"):
        loss_of(name, batch)


def test_a_target_outside_the_vocabulary_is_named():
    batch = targets_batch()
    batch.targets_BT[0, 1] = VOCAB + 1
    with pytest.raises(DataError, match=f"token id {VOCAB + 1}"):
        loss_of("seq2seq", batch)


@pytest.mark.parametrize(
    ("name", "weight"),
    [("causal_lm", 9), ("seq2seq", 9), ("extractive_qa", 3), ("contrastive", 2), ("dpo", 2)],
)
def test_weights_count_what_the_loss_is_summed_over(name, weight):
    make, _, batch = CASES[name]
    assert make().weight(batch()) == weight


def test_seq2seq_sums_the_cross_entropy_of_the_targets():
    torch.manual_seed(0)
    model, batch = FakeEncoderDecoder(VOCAB), targets_batch()
    source = batch.source
    arrays = (source.tokens_BS, source.positions_BS, source.segments_BS)
    arrays += (batch.tokens_BT, batch.positions_BT, batch.segments_BT)
    log_p = model(*map(torch.from_numpy, arrays)).log_softmax(-1)
    scored = np.argwhere(batch.targets_BT != IGNORE_INDEX).tolist()
    expected = -sum(float(log_p[row, t, batch.targets_BT[row, t]].detach()) for row, t in scored)
    loss = Seq2Seq(VOCAB).loss_sum(model, batch)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_a_pair_without_target_is_neither_query_nor_negative():
    torch.manual_seed(0)
    model, whole = FakeEncoder(VOCAB, "embedding"), pair_batch()
    damaged = pair_batch()
    damaged.targets_BT[1] = IGNORE_INDEX
    task = Contrastive(VOCAB, 0.1)
    assert (task.weight(whole), task.weight(damaged)) == (2, 1)
    task.begin(model, [damaged], Topology.single())
    assert float(task.loss_sum(model, damaged).detach()) == pytest.approx(0.0, abs=1e-6)
    task.begin(model, [whole], Topology.single())
    assert float(task.loss_sum(model, whole).detach()) > 1e-3


def test_nothing_is_embedded_twice_where_no_gradient_is_wanted():
    model, batch, task = FakeEncoder(VOCAB, "embedding"), pair_batch(), Contrastive(VOCAB, 0.1)
    task.begin(model, [batch], Topology.single())
    model.forward = None  # a further call would fail
    with torch.no_grad():
        assert float(task.loss_sum(model, batch)) > 0


def test_the_reference_model_is_frozen_and_the_trained_one_is_not():
    reference, model, batch = FakeDecoder(VOCAB), FakeDecoder(VOCAB), targets_batch()
    task = DPO(VOCAB, 0.1, reference)
    task.loss_sum(model, batch).backward()
    assert all(weight.grad is None and not weight.requires_grad for weight in reference.parameters())
    assert float(model.out.weight.grad.abs().sum()) > 0
    assert not reference.training


def test_beside_preferences_the_preferred_answers_own_loss_counts_a_token():
    reference, model, batch = FakeDecoder(VOCAB), FakeDecoder(VOCAB), targets_batch()
    plain, both = (DPO(VOCAB, 0.1, reference, nll_weight=weight) for weight in (0.0, 2.0))
    own_P2, _ = plain.log_p(model, batch)
    sizes_P = [  # the preferred answers are the segments with even numbers
        int(((segments_T == number) & (targets_T != IGNORE_INDEX)).sum())
        for segments_T, targets_T in zip(batch.segments_BT, batch.targets_BT, strict=True)
        for number in range(0, int(segments_T.max()) + 1, 2)
    ]
    own_loss = -(own_P2[:, 0] / torch.tensor([size for size in sizes_P if size])).sum()
    expected = plain.loss_sum(model, batch) + 2.0 * own_loss
    torch.testing.assert_close(both.loss_sum(model, batch), expected)
    assert float(own_loss.detach()) > 0.1


def test_the_registry_builds_every_task_it_names():
    config = Config()
    shape = settle_shape(config.model, VOCAB, LENGTH)
    units = {}
    for name in get_args(TaskName):
        named = Config(task=TaskConfig(name=name))
        task = build_task(named, shape, FakeDecoder(VOCAB) if name == "dpo" else None)
        units[name] = (task.unit, task.reads_text)
    assert units["causal_lm"] == ("token", True)
    assert {name for name, (_, reads) in units.items() if reads} == {"causal_lm"}
    assert units["extractive_qa"][0] == "window"
    assert units["contrastive"][0] == units["dpo"][0] == "pair"
    with pytest.raises(ValueError, match="the model that training began with"):
        build_task(Config(task=TaskConfig(name="dpo")), shape)
