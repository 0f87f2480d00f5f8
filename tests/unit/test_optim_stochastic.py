"""bf16 weights without an fp32 copy: what the engine holds, what a checkpoint restores, what is refused."""

import pytest
import torch
from engine_jobs import make_model

from distllm.config.checks import check_run
from distllm.config.engine import deepspeed_json
from distllm.config.problems import Problems
from distllm.config.schema import Config, EngineConfig, PrecisionConfig, TrainConfig
from distllm.config.schema_optim import OptimConfig
from distllm.dist.build import build_engine
from distllm.dist.topology import Topology
from distllm.optim.optimizers import build_optimizer


def engine(ema=None):
    settings = deepspeed_json(
        zero_stage=0, micro_batch_size=2, grad_accum_steps=1, world_size=1, grad_clip=1.0, compute="bf16",
        bucket_bytes=4096, device="cpu", offload="none",
    )  # fmt: skip
    config = OptimConfig(name="adamw_bf16", lr=1e-3, weight_decay=0.0, ema=ema)
    topology = Topology(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))
    return build_engine(
        "local", make_model(), lambda model: build_optimizer(model, config), settings=settings,
        topology=topology, timeout_seconds=60,
    )  # fmt: skip


def steps(trained, numbers):
    for number in numbers:
        tokens = torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(number))
        trained.backward(trained.model(tokens).square().mean())
        assert not trained.step(1e-3).skipped


def test_weights_are_bf16_moments_fp32_and_a_resume_changes_no_bit():
    whole, first, second = engine(), engine(), engine()
    assert {weight.dtype for weight in whole.model.parameters()} == {torch.bfloat16}
    steps(whole, range(4))
    steps(first, range(2))
    saved = dict(first.state())
    second.load_state(saved.__getitem__, 2)
    steps(second, range(2, 4))
    for (name, one), (_, other) in zip(whole.state(), second.state(), strict=True):
        assert torch.equal(one, other), name
    moments = [tensor for name, tensor in saved.items() if name.startswith("optim/exp_avg_sq/")]
    assert moments
    assert not all(torch.equal(moment, moment.bfloat16().float()) for moment in moments)


def test_the_average_of_bf16_weights_is_kept_in_fp32_and_resumed():
    whole, first, second = engine(0.9), engine(0.9), engine(0.9)
    by_hand = {
        name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in whole.model.named_parameters()
    }
    for number in range(4):
        steps(whole, [number])
        for name, weight in whole.model.named_parameters():
            by_hand[name] = 0.9 * by_hand[name] + 0.1 * weight.detach().float()
    averages = {name.removeprefix("optim/ema/"): tensor for name, tensor in whole.state() if "/ema/" in name}
    assert averages.keys() == by_hand.keys()
    for name, average in averages.items():
        torch.testing.assert_close(average, by_hand[name], rtol=1e-5, atol=1e-7)
    assert not all(torch.equal(average, average.bfloat16().float()) for average in averages.values())
    steps(first, range(2))
    second.load_state(dict(first.state()).__getitem__, 2)
    steps(second, range(2, 4))
    for (name, one), (_, other) in zip(whole.state(), second.state(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("engine_name", "compute", "says"),
    [
        ("local", "bf16", None),
        ("local", "fp32", "is for bf16 weights without an fp32 copy"),
        ("deepspeed", "bf16", "is for bf16 weights without an fp32 copy"),
    ],
)
def test_it_is_refused_where_weights_have_an_fp32_copy(engine_name, compute, says):
    problems = Problems()
    config = Config(
        optim=OptimConfig(name="adamw_bf16", ema=0.9), engine=EngineConfig(name=engine_name, zero_stage=0),
        precision=PrecisionConfig(compute=compute), train=TrainConfig(max_steps=1),
    )  # fmt: skip
    check_run(config, problems, world_size=1, dataset_tokens=None)
    found = [str(problem) for problem in problems.found if "optim" in problem.where]
    assert [says in text for text in found] == ([True] if says else [])
