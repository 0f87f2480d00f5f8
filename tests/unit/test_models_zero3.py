"""A decoder whose weights are partitioned over ranks learns, and writes, what plain torch does."""

import functools
from unittest import mock

import pytest
from ranks import run_ranks

pytestmark = pytest.mark.dist

VOCAB, LENGTH, ROWS, STEPS = 60, 16, 4, 3


def train(topology, engine_name, tie_embeddings, compiled):
    import torch
    from generation import generate

    from distllm.config.engine import deepspeed_json
    from distllm.config.schema import ModelConfig, OptimConfig
    from distllm.config.shape import settle_shape
    from distllm.dist.build import build_engine
    from distllm.models.init import build_model
    from distllm.models.stack import compile_blocks
    from distllm.optim.optimizers import build_optimizer

    config = ModelConfig(
        hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, tie_embeddings=tie_embeddings, init_std=0.1
    )
    model = build_model(settle_shape(config, VOCAB, LENGTH), seed=0)
    settings = deepspeed_json(
        zero_stage=3, micro_batch_size=ROWS // topology.world_size, grad_accum_steps=1, bucket_bytes=4096,
        world_size=topology.world_size, grad_clip=1.0, compute="fp32", device="cpu", compiled=compiled,
    )  # fmt: skip
    if compiled:
        with mock.patch("torch.compile", functools.partial(torch.compile, backend="aot_eager")):
            compile_blocks(model)
    engine = build_engine(
        engine_name, model, lambda m: build_optimizer(m, OptimConfig(eps=1e-4)),
        settings=settings, topology=topology, timeout_seconds=60,
    )  # fmt: skip

    losses, place = [], torch.arange(LENGTH)
    mine = slice(topology.rank, None, topology.world_size)
    segments = (place >= 5).long().expand(ROWS, -1)
    positions = torch.where(place >= 5, place - 5, place).expand(ROWS, -1)
    for step in range(STEPS):
        tokens = torch.randint(VOCAB, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(step))
        batch = tokens[:, :-1], positions, segments, tokens[:, 1:]
        loss = engine.model(*(x[mine] for x in batch)) / (ROWS * LENGTH)
        engine.backward(loss)
        engine.step(lr=1e-2)
        total = loss.detach().clone()
        torch.distributed.all_reduce(total)
        losses.append(total.item())
    text = generate(engine.model, [1, 2, 3], vocab_size=VOCAB, eot_id=-1, max_tokens=8)
    return losses, text


def train_all(topology, cases):
    return [train(topology, *case) for case in cases]


@pytest.mark.slow
def test_zero3_is_plain_torch():
    plain = [("local", True, False), ("local", False, False)]
    zero3 = [("deepspeed", True, False), ("deepspeed", False, True)]
    first, second = run_ranks(train_all, 2, plain + zero3)
    assert first == second
    expected, found = first[:2], first[2:]
    for (losses, text), (same_losses, same_text) in zip(expected, found, strict=True):
        assert losses[-1] < losses[0]
        assert same_losses == pytest.approx(losses, rel=1e-5)
        assert same_text == text
