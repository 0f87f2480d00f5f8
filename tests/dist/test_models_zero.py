"""Encoders and encoder-decoders learn under every ZeRO stage what they learn in plain torch."""

import pytest
from ranks import run_ranks

pytestmark = [pytest.mark.dist, pytest.mark.slow]

VOCAB, LENGTH, ROWS, STEPS = 64, 12, 4, 3
BERT = {
    "family": "encoder",
    "norm": "layer",
    "norm_bias": True,
    "norm_place": "post",
    "embed_norm": True,
    "token_types": 2,
    "positions": "learned",
    "gated": False,
    "activation": "gelu",
    "attention_bias": True,
    "mlp_bias": True,
}
T5 = {
    "family": "encoder_decoder",
    "positions": "relative",
    "relative_buckets": 8,
    "relative_distance": 16,
    "attention_scale": 1.0,
    "num_encoder_layers": 1,
}


def train(topology, engine_name, stage, options):
    import torch

    from distllm.config.engine import deepspeed_json
    from distllm.config.schema import ModelConfig, OptimConfig
    from distllm.config.shape import settle_shape
    from distllm.dist.build import build_engine
    from distllm.models.init import build_model
    from distllm.optim.optimizers import build_optimizer

    config = ModelConfig(hidden_size=32, num_layers=2, num_heads=4, init_std=0.1, **options)
    settings = deepspeed_json(
        zero_stage=stage,
        micro_batch_size=ROWS // topology.world_size,
        grad_accum_steps=1,
        bucket_bytes=4096,
        world_size=topology.world_size,
        grad_clip=1.0,
        compute="fp32",
        device="cpu",
    )
    engine = build_engine(
        engine_name,
        build_model(settle_shape(config, VOCAB, LENGTH), seed=0),
        lambda model: build_optimizer(model, OptimConfig(eps=1e-4)),
        settings=settings,
        topology=topology,
        timeout_seconds=60,
    )
    mine = slice(topology.rank, None, topology.world_size)
    place = torch.arange(LENGTH)
    segments = (place >= 5).long().expand(ROWS, -1)
    positions = torch.where(place >= 5, place - 5, place).expand(ROWS, -1)
    losses = []
    tokens = torch.randint(VOCAB, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    target = tokens[:, :-1], positions, segments
    inputs = (tokens[:, 1:], *target[1:], *target) if "encoder_decoder" in options.values() else target
    for _ in range(STEPS):
        loss = engine.model(*(x[mine] for x in (*inputs, tokens[:, 1:]))) / (ROWS * LENGTH)
        engine.backward(loss)
        engine.step(lr=1e-2)
        total = loss.detach().clone()
        torch.distributed.all_reduce(total)
        losses.append(total.item())
    return losses


def train_all(topology, cases):
    return [train(topology, *case) for case in cases]


def test_every_stage_is_plain_torch():
    engines = [("local", 0), ("deepspeed", 2), ("deepspeed", 3)]
    cases = [(*engine, options) for options in (BERT, T5) for engine in engines]
    first, second = run_ranks(train_all, 2, cases)
    assert first == second
    for expected, *found in (first[:3], first[3:]):
        assert expected[-1] < expected[0]
        for losses in found:
            assert losses == pytest.approx(expected, rel=1e-5)
