"""ZeRO++ hpZ: one more copy of the weights for backward changes no loss, and survives a checkpoint."""

import pytest
from engine_jobs import make_optimizer
from ranks import run_ranks


def engine_of(topology, hpz_ranks):
    from distllm.config.engine import deepspeed_json
    from distllm.config.schema_model import ModelConfig
    from distllm.config.shape import settle_shape
    from distllm.dist.build import build_engine
    from distllm.models.init import build_model

    shape = settle_shape(ModelConfig(hidden_size=256, num_layers=2, num_heads=4), 256, 32)
    settings = deepspeed_json(
        zero_stage=3, micro_batch_size=4 // topology.world_size, grad_accum_steps=2,
        world_size=topology.world_size, grad_clip=0.5, compute="fp32", bucket_bytes=4096, device="cpu",
        hpz_ranks=hpz_ranks,
    )  # fmt: skip
    assert settings["zero_optimization"]["zero_hpz_partition_size"] == hpz_ranks
    model = build_model(shape, seed=0)
    return build_engine(
        "deepspeed", model, make_optimizer, settings=settings, topology=topology, timeout_seconds=60
    )


def steps_of(engine, topology, first, last):
    import torch

    from distllm.dist.collectives import sum_over_ranks

    losses = []
    for step in range(first, last):
        samples = torch.randint(0, 256, (8, 32), generator=torch.Generator().manual_seed(step))
        mine, total = samples[topology.rank :: topology.world_size], 0.0
        for rows in mine.chunk(2):
            loss = engine.model(rows, torch.arange(32).expand(len(rows), -1), None, rows)
            total += loss.item()
            engine.backward(loss / 256)
        engine.step(lr=1e-3)
        losses.append(sum_over_ranks([total], topology)[0])
    return losses


def train(topology, hpz_ranks):
    """Return the losses of four steps, and of the last two from the state after the first two."""
    engine = engine_of(topology, hpz_ranks)
    losses = steps_of(engine, topology, 0, 2)
    state = {name: tensor.clone() for name, tensor in engine.state()}
    losses += steps_of(engine, topology, 2, 4)
    again = engine_of(topology, hpz_ranks)
    again.load_state(state.__getitem__, 2)
    return losses, steps_of(again, topology, 2, 4)


@pytest.mark.slow
@pytest.mark.dist
def test_losses_are_those_of_one_rank_also_after_loading_a_state():
    alone, _ = run_ranks(train, 1, 1, timeout=200)[0]
    together, resumed = run_ranks(train, 2, 2, timeout=200)[0]
    assert together == pytest.approx(alone, rel=1e-5)
    assert resumed == pytest.approx(together[2:], rel=1e-6)
    assert together[-1] < together[0]
