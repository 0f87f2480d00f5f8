"""DP-SGD: rows are clipped one by one, noise is of the size it is accounted for, and epsilon is Opacus's."""

import math
import secrets

import numpy as np
import pytest
import torch
from engine_jobs import VOCAB, make_model, make_optimizer
from torch import nn
from torch.nn.functional import cross_entropy

from distllm.config.checks_private import check_private
from distllm.config.engine import deepspeed_json
from distllm.config.problems import Problems
from distllm.config.schema import (
    Config,
    DataConfig,
    EngineConfig,
    PrecisionConfig,
    TaskConfig,
)
from distllm.config.schema_batch import BatchConfig
from distllm.config.schema_guard import GuardConfig
from distllm.config.schema_lora import LoraConfig
from distllm.config.schema_model import ModelConfig
from distllm.config.schema_optim import OptimConfig, PrivateConfig
from distllm.config.shape import settle_shape
from distllm.data.order import Phase, SampleOrder, SourceSamples
from distllm.dist.private import PrivateEngine
from distllm.dist.topology import Topology
from distllm.models.init import build_model
from distllm.models.lora import add_adapters
from distllm.train.privacy import KEY_FILE, PrivacyAccount, epsilon, noise_key

pytest.importorskip("opacus")
ROWS, CLIP = 6, 0.7


def engine_of(noise, model=None, key=1, optimizer=make_optimizer):
    settings = deepspeed_json(
        zero_stage=0, micro_batch_size=1, grad_accum_steps=ROWS, world_size=1, grad_clip=0.0, compute="fp32",
        bucket_bytes=4096, device="cpu", offload="none",
    )  # fmt: skip
    model = model or make_model()
    return PrivateEngine(
        model, optimizer(model), settings, Topology.single(), noise=noise, clip=CLIP, rows=ROWS, key=key
    )


def loss_of(model, row):
    return cross_entropy(model(row[None, :-1])[0], row[1:])


@pytest.fixture
def rows():
    return torch.randint(0, VOCAB, (ROWS, 9), generator=torch.Generator().manual_seed(5))


def gradients(engine, rows, first=0):
    engine.expect(len(rows), first)
    for row in rows:
        engine.backward(loss_of(engine.model, row) * (1 + int(row[0]) % 3))
    return [gradient.clone() for gradient in engine._gradients()]


def test_without_noise_it_is_the_mean_of_clipped_gradients_tied_weights_and_all(rows):
    model, expected, norms = make_model(), None, []
    for row in rows:
        model.zero_grad()
        (loss_of(model, row) * (1 + int(row[0]) % 3)).backward()
        own = [weight.grad.clone() for weight in model.parameters()]
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in own))
        norms.append(norm)
        part = [gradient * min(1.0, CLIP / norm) / ROWS for gradient in own]
        expected = part if expected is None else [a + b for a, b in zip(expected, part, strict=True)]
    assert max(norms) > CLIP  # something was clipped
    for found, wanted in zip(gradients(engine_of(0.0), rows), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_that_of_opacus_where_its_wrapper_works(rows):
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    def plain():
        torch.manual_seed(3)
        return nn.Sequential(nn.Embedding(VOCAB, 8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, VOCAB))

    wrapped = GradSampleModule(plain(), loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=CLIP,
        expected_batch_size=ROWS,
    )  # fmt: skip
    logits = wrapped(rows[:, :-1])
    each = cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").mean(1)
    (each * (1 + rows[:, 0] % 3)).sum().backward()
    optimizer.pre_step()
    ours = gradients(engine_of(0.0, plain()), rows)
    for found, weight in zip(ours, wrapped.parameters(), strict=True):
        torch.testing.assert_close(found, weight.grad, rtol=1e-4, atol=1e-6)


def test_a_row_changes_the_sum_by_no_more_than_the_clip(rows):
    loud = rows.clone()
    whole = gradients(engine_of(0.0), loud)
    without = gradients(engine_of(0.0), loud[1:])
    moved = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(whole, without, strict=True)))
    assert moved <= CLIP / ROWS * (1 + 1e-5)


def test_adapters_learn_privately_and_what_is_frozen_gets_no_noise(rows):
    shape = settle_shape(ModelConfig(hidden_size=32, num_layers=1, num_heads=4), VOCAB, 16)
    model = build_model(shape, 0)
    add_adapters(model, shape, LoraConfig(rank=2, targets=("q_proj", "v_proj")), 0)
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    engine = engine_of(2.0, model, optimizer=lambda _: torch.optim.AdamW(learning, lr=1.0))
    before = [weight.clone() for weight in model.parameters()]
    places = torch.arange(8)[None]
    engine.expect(ROWS, 0)
    for row in rows:
        engine.backward(cross_entropy(model(row[None, :-1], places)[0], row[1:]))
    engine.step(0.01)
    assert len(learning) == 4
    for old, weight in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, weight) != weight.requires_grad


def test_noise_has_the_size_it_is_accounted_for_and_follows_from_key_and_sample(rows):
    quiet, loud = gradients(engine_of(0.0), rows), gradients(engine_of(2.0), rows)
    noise = torch.cat([(a - b).flatten() for a, b in zip(loud, quiet, strict=True)])
    assert float(noise.std()) == pytest.approx(2.0 * CLIP / ROWS, rel=0.05)
    assert abs(float(noise.mean())) < 0.05 * 2.0 * CLIP / ROWS
    again = gradients(engine_of(2.0), rows)
    assert all(torch.equal(a, b) for a, b in zip(loud, again, strict=True))
    for other in (gradients(engine_of(2.0, key=2), rows), gradients(engine_of(2.0), rows, first=64)):
        assert not any(torch.equal(a, b) for a, b in zip(loud, other, strict=True))


def test_a_step_forgets_its_rows_and_keeps_the_state_of_the_plain_engine(rows):
    engine = engine_of(0.5)
    for step in range(2):
        engine.expect(ROWS, step * ROWS)
        for row in rows:
            engine.backward(loss_of(engine.model, row))
        assert math.isfinite(engine.step(0.01).grad_norm)
    assert engine.optimizer_steps == 2
    assert all(weight.summed_grad is None and weight.grad is None for weight in engine.model.parameters())


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.1, 0.02, 300), (0.8, 1.0, 3), (4.0, 0.3, 7)])
def test_epsilon_is_that_of_opacus(noise, rate, steps):
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    for _ in range(steps):
        accountant.step(noise_multiplier=noise, sample_rate=rate)
    assert epsilon(noise, rate, steps, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-9)


def test_the_account_counts_epochs_of_the_source_that_is_gone_through_most():
    sources = (SourceSamples("small", (40,)), SourceSamples("large", (400,)))
    order = SampleOrder(sources, [Phase(0, (1, 1))], seed=0)  # as often from each
    account = PrivacyAccount(PrivateConfig(noise=2.0, delta=1e-6), order, rows=8)
    assert account.spent(0).epsilon == 0.0
    assert account.spent(80).epsilon == epsilon(2.0, 1.0, 1, 1e-6)  # 40 of the small one
    assert account.spent(88).epsilon == epsilon(2.0, 1.0, 2, 1e-6)
    assert account.spent(80).poisson == epsilon(2.0, 40 / 10 / 40, 10, 1e-6)
    grown = [account.spent(samples).epsilon for samples in range(0, 400, 8)]
    assert grown == sorted(grown)


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path):
    key = noise_key(tmp_path)
    assert key == noise_key(tmp_path) > 2**128
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o077 == 0
    (tmp_path / KEY_FILE).unlink()
    assert noise_key(tmp_path) != key


def test_a_key_that_is_not_written_whole_does_not_exist(tmp_path, monkeypatch):
    draw = secrets.token_hex

    def killed(size):
        if size == 32:
            raise KeyboardInterrupt
        return draw(size)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(secrets, "token_hex", killed)
        with pytest.raises(KeyboardInterrupt):
            noise_key(tmp_path)
    assert not list(tmp_path.iterdir())
    assert noise_key(tmp_path) > 0


PRIVATE = {
    "optim": OptimConfig(private=PrivateConfig(noise=1.0)),
    "engine": EngineConfig(name="local", zero_stage=0),
    "data": DataConfig(packing="single"),
    "guard": GuardConfig(spike_threshold=0.0),
}
REFUSED = [
    ("cannot be private: the loss of a pair", {"task": TaskConfig(name="contrastive")}),
    ("cannot be private: a question has several", {"task": TaskConfig(name="extractive_qa")}),
    ("single rows cannot be clipped", {"engine": EngineConfig(zero_stage=2)}),
    ("none knows its norm", {"engine": EngineConfig(name="local", zero_stage=0, sequence_ranks=2)}),
    ("a row holds several documents", {"data": DataConfig(packing="best_fit")}),
    ("the guard judges spikes", {"guard": GuardConfig()}),
    ("8 bits of a gradient", {"precision": PrecisionConfig(compute="bf16")}),
    ("assumes steps of equal size", {"batch": BatchConfig(start_tokens=512, warmup_tokens=4096)}),
]


@pytest.mark.parametrize(("words", "change"), REFUSED, ids=[words for words, _ in REFUSED])
def test_what_cannot_be_private_is_refused_with_the_reason(words, change):
    problems = Problems()
    check_private(Config(**{**PRIVATE, **change}), problems)
    assert [words in problem.cause for problem in problems.found] == [True]


def test_what_can_be_is_not_and_other_runs_are_not_asked():
    for config in (Config(**PRIVATE), Config()):
        problems = Problems()
        check_private(config, problems)
        assert not problems.found


def test_a_micro_batch_is_one_row():
    from distllm.config.compose import compose
    from distllm.config.resolve import resolve

    words = ["train.max_steps=10", "data.seq_len=128", "train.tokens_per_step=4096", "engine=local",
             "optim.private.noise=1", "data.packing=single", "guard.spike_threshold=0"]  # fmt: skip
    got = resolve(compose(words))
    assert (got.micro_batch_size, got.grad_accum_steps) == (1, 32)
    assert np.isfinite(got.config.optim.private.delta)
