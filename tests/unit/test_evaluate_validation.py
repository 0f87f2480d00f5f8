"""Validation: every sample once, whatever the ranks and the last batch; a loss for each source."""

import math

import numpy as np
import pytest
import torch
from fakes import FakeEncoder
from prepared import byte_tokenizer, write_sources

from distllm.config.schema import Config, DataConfig, TaskConfig
from distllm.data.batch import IGNORE_INDEX
from distllm.data.open import open_split
from distllm.data.stream import PackedSplit
from distllm.dist.topology import Topology
from distllm.evaluate import perplexity
from distllm.evaluate.perplexity import Perplexity, evaluate_perplexity
from distllm.tasks.causal_lm import CausalLM
from distllm.tasks.contrastive import Contrastive

SEQ = 16
TOKENIZER = byte_tokenizer()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("valid") / "data"
    numbers = np.random.default_rng(0)

    def documents(low, high, count):
        return [numbers.integers(low, high, 30).tolist() for _ in range(count)]

    sources = {
        "small": {"valid": documents(1, 50, 7), "train": documents(1, 50, 2)},
        "large": {"valid": documents(100, 250, 30), "train": documents(100, 250, 2)},
    }
    write_sources(root, sources)
    return root


class Counted(CausalLM):
    """A task whose loss is the sum of its targets; it remembers the rows that counted."""

    def __init__(self):
        super().__init__(300, mask_documents=True)
        self.rows, self.calls = [], 0

    def loss_sum(self, model, batch):
        self.calls += 1
        scored = batch.targets_BT != IGNORE_INDEX
        counted = scored.any(axis=1)
        self.rows += batch.sample_ids_B[counted].tolist()
        assert (batch.sample_ids_B[counted] >= 0).all()
        assert len(set(batch.sample_ids_B.tolist())) == batch.sample_ids_B.size
        return torch.tensor(float(batch.targets_BT[scored].sum()))


def measure(split, topology, *, micro, task=None, max_tokens=None, model=None):
    task = task or Counted()
    measured = evaluate_perplexity(
        model or torch.nn.Linear(1, 1),
        task,
        split,
        TOKENIZER,
        topology,
        micro_batch_size=micro,
        max_tokens=max_tokens,
    )
    return measured, task


def on_ranks(split, world, micro, monkeypatch, max_tokens=None):
    """Evaluate on every rank in turn and add up what they would have exchanged."""
    shares, tasks = [], []
    monkeypatch.setattr(perplexity, "sum_over_ranks", lambda sums, _: shares.append(sums) or sums)
    for rank in range(world):
        topology = Topology(rank, world, rank, world, torch.device("cpu"))
        tasks.append(measure(split, topology, micro=micro, max_tokens=max_tokens)[1])
    return np.sum(shares, axis=0), tasks


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 4, 5])
def test_every_sample_counts_once_and_all_ranks_take_as_many_steps(dataset, monkeypatch, world, micro):
    split = PackedSplit(dataset, "valid", SEQ)
    whole, _ = on_ranks(split, 1, split.num_samples, monkeypatch)
    sums, tasks = on_ranks(split, world, micro, monkeypatch)
    assert sorted(row for task in tasks for row in task.rows) == list(range(split.num_samples))
    assert sums == pytest.approx(whole)
    assert len({task.calls for task in tasks}) == 1


def test_each_source_has_a_loss_of_its_own(dataset):
    split = PackedSplit(dataset, "valid", SEQ)
    measured, _ = measure(split, Topology.single(), micro=4)
    assert list(measured.sources) == ["large", "small"]
    first = split.sources[0].total
    for name, rows in (("large", range(first)), ("small", range(first, split.num_samples))):
        numbers = np.array(rows)
        targets = split.batch(numbers, numbers).targets_BT
        targets = targets[targets != IGNORE_INDEX]
        assert measured.sources[name] == pytest.approx(targets.mean())
    assert measured.sources["small"] < measured.loss < measured.sources["large"]
    assert "small" in str(measured)


def test_a_part_of_the_split_is_spread_over_its_sources(dataset):
    split = PackedSplit(dataset, "valid", SEQ)
    measured, task = measure(split, Topology.single(), micro=4, max_tokens=12 * SEQ)
    assert measured.tokens == 12 * SEQ
    assert len(measured.sources) == 2
    assert len(task.rows) == 12
    assert max(np.diff(sorted(task.rows))) <= math.ceil(split.num_samples / 12)
    again, _ = measure(split, Topology.single(), micro=3, max_tokens=12 * SEQ)
    assert again.loss == pytest.approx(measured.loss)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_comes_back(dataset, training):
    model = torch.nn.Linear(1, 1).train(training)
    seen = []
    task = Counted()
    task.begin = lambda model, batches, topology: seen.append(model.training)
    measure(PackedSplit(dataset, "valid", SEQ), Topology.single(), micro=8, task=task, model=model)
    assert seen == [False, False]
    assert model.training is training


def test_pairs_are_measured_against_all_pairs_of_the_split(tmp_path):
    numbers = np.random.default_rng(1)
    held = [(numbers.integers(1, 250, 4).tolist(), numbers.integers(1, 250, 6).tolist()) for _ in range(11)]
    root = tmp_path / "data"
    write_sources(root, {"p": {"train": held, "valid": held}}, fields={"p": ("source", "target")})
    config = Config(data=DataConfig(out=str(root), seq_len=SEQ), task=TaskConfig(name="contrastive"))
    split = open_split(config, "valid")
    torch.manual_seed(0)
    model, task = FakeEncoder(300, "embedding"), Contrastive(300, 0.2)
    losses = [measure(split, Topology.single(), micro=m, task=task, model=model)[0] for m in (11, 4, 1)]
    assert losses[0].loss == pytest.approx(losses[1].loss) == pytest.approx(losses[2].loss)
    assert (losses[0].tokens, losses[0].unit) == (11, "pair")
    assert losses[0].perplexity is None
    assert losses[0].bits_per_byte is None
    assert "nats/pair" in str(losses[0])
    assert 1.0 < losses[0].loss < 4.0  # among eleven, not among the rows of a micro-batch


def test_figures_that_mean_nothing_are_not_given():
    text = Perplexity(math.log(2) * 10, 10, 5)
    assert text.perplexity == pytest.approx(2.0)
    assert text.bits_per_byte == pytest.approx(2.0)
    assert "bits/byte" in str(text)
    hidden = Perplexity(20.0, 10, 0)
    assert hidden.bits_per_byte is None
    assert hidden.perplexity == pytest.approx(math.exp(2))
    assert "bits/byte" not in str(hidden)
    assert Perplexity(1e6, 1, 0).perplexity == math.inf
    assert math.isnan(Perplexity(0.0, 0, 0).perplexity)


def test_hidden_tokens_have_no_bytes(dataset):
    split = PackedSplit(dataset, "valid", SEQ)
    task = Counted()
    task.reads_text = False
    assert measure(split, Topology.single(), micro=4, task=task)[0].bits_per_byte is None
    assert measure(split, Topology.single(), micro=4)[0].bits_per_byte > 0
