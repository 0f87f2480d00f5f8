"""The average of the weights: the mean it stands for, where it is kept, and who can read it."""

import pytest
import torch
from torch import nn

from distllm.checkpoint.retention import Retention
from distllm.checkpoint.save import Saver
from distllm.config.compose import compose
from distllm.config.engine import deepspeed_json
from distllm.config.schema_optim import OptimConfig
from distllm.dist.local import LocalEngine
from distllm.dist.topology import Topology
from distllm.errors import ConfigError
from distllm.infer.load import load_trained
from distllm.optim.ema import total_weight
from distllm.optim.optimizers import build_optimizer

DECAY = 0.6


def engine_of(model, **config):
    settings = deepspeed_json(
        zero_stage=0, micro_batch_size=1, grad_accum_steps=1, world_size=1, grad_clip=0.0, compute="fp32",
        bucket_bytes=4096, device="cpu",
    )  # fmt: skip
    optimizer = build_optimizer(model, OptimConfig(**config))
    return LocalEngine(model, optimizer, settings, Topology.single())


def train(engine, steps):
    """Take steps, and return the weights after each."""
    seen = []
    for step in range(steps):
        engine.backward(sum((weight * (step + 1)).square().sum() for weight in engine.model.parameters()))
        engine.step(0.1)
        seen.append([weight.detach().clone() for weight in engine.model.parameters()])
    return seen


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_it_is_the_weighted_mean_of_the_weights_after_each_update(name):
    torch.manual_seed(0)
    engine = engine_of(nn.Linear(4, 3), name=name, ema=DECAY)
    seen = train(engine, 4)
    engine.backward(next(engine.model.parameters()).sum() * float("nan"))
    assert engine.step(0.1).skipped  # what is not applied does not count
    state = dict(engine.state())
    shares = [(1 - DECAY) * DECAY ** (3 - step) for step in range(4)]
    assert sum(shares) == pytest.approx(total_weight(DECAY, 4))
    for place, parameter in enumerate(("weight", "bias")):
        wanted = sum(share * weights[place] for share, weights in zip(shares, seen, strict=True))
        assert torch.allclose(state[f"optim/ema/{parameter}"], wanted, atol=1e-6)


def test_without_it_nothing_is_kept():
    assert not [name for name, _ in engine_of(nn.Linear(2, 2)).state() if "ema" in name]


def test_a_resumed_average_goes_on_exactly():
    torch.manual_seed(0)
    first = engine_of(nn.Linear(4, 3), ema=DECAY)
    train(first, 2)
    state = dict(first.state())
    second = engine_of(nn.Linear(4, 3), ema=DECAY)
    second.load_state(state.__getitem__, 2)
    train(first, 2)
    train(second, 2)
    for (name, one), (_, other) in zip(first.state(), second.state(), strict=True):
        assert torch.equal(one, other), name


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A run of three updates, saved with the tokenizer of its dataset beside it."""
    from distllm.config.resolve import resolve
    from distllm.config.schema_tokenizer import TokenizerConfig
    from distllm.data.tokenizer import Tokenizer
    from distllm.models.init import build_model

    root = tmp_path_factory.mktemp("average")
    Tokenizer.train(["the cat sat on the mat"] * 4, TokenizerConfig(vocab_size=262)).save(root / "data")
    words = [
        f"data.out={root}/data", "tokenizer.vocab_size=262", "model.hidden_size=32", "model.num_layers=1",
        "model.num_heads=4", "data.seq_len=16", "train.max_steps=4", "optim.ema=0.6",
        "cluster.procs_per_node=1",
    ]  # fmt: skip
    resolved = resolve(compose(words), starts_here=False)
    engine = engine_of(build_model(resolved.shape, 0), ema=DECAY)
    averages = train(engine, 3)
    saver = Saver(root / "checkpoints", Topology.single(), Retention(2))
    saver.save(3, engine, {"step": 3}, {})
    saver.settle()
    return root / "checkpoints", resolved, averages


def test_readers_choose_the_last_weights_or_their_mean(checkpoint):
    directory, resolved, seen = checkpoint
    shares = [(1 - DECAY) * DECAY ** (2 - step) / total_weight(DECAY, 3) for step in range(3)]
    last = load_trained(directory, resolved)
    mean = load_trained(directory, resolved, weights="ema")
    for place, (one, other) in enumerate(zip(last.model.parameters(), mean.model.parameters(), strict=True)):
        assert torch.equal(one, seen[-1][place])
        wanted = sum(share * weights[place] for share, weights in zip(shares, seen, strict=True))
        assert torch.allclose(other, wanted, atol=1e-6)
        assert not torch.equal(one, other)


def test_a_run_without_an_average_says_so(checkpoint):
    from dataclasses import replace

    directory, resolved, _ = checkpoint
    config = replace(resolved.config, optim=replace(resolved.config.optim, ema=None))
    with pytest.raises(ConfigError, match="holds no average"):
        load_trained(directory, replace(resolved, config=config), weights="ema")
