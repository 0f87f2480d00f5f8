"""Encoders, encoder-decoders and adapters learn under every ZeRO stage what they learn in plain torch."""

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


def engine_of(topology, engine_name, stage, options, rank=0):
    import torch

    from distllm.config.engine import deepspeed_json
    from distllm.config.schema import ModelConfig, OptimConfig
    from distllm.config.schema_lora import LoraConfig
    from distllm.config.shape import settle_shape
    from distllm.dist.build import build_engine
    from distllm.models.init import build_model
    from distllm.models.lora import add_adapters
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
    model = build_model(shape := settle_shape(config, VOCAB, LENGTH), seed=0)
    if rank:
        add_adapters(model, shape, LoraConfig(rank=rank, targets=("k_proj", "v_proj", "down_proj")), seed=0)
    return build_engine(
        engine_name,
        model,
        lambda model: build_optimizer(model, OptimConfig(eps=1e-4)),
        settings=settings,
        topology=topology,
        timeout_seconds=60,
    )


def train(topology, engine, options, steps=STEPS, parts=1):
    """Take steps of ``parts`` micro-batches, which need not be as many as the engine was built for."""
    import torch

    mine = slice(topology.rank, None, topology.world_size)
    place = torch.arange(LENGTH)
    segments = (place >= 5).long().expand(ROWS, -1)
    positions = torch.where(place >= 5, place - 5, place).expand(ROWS, -1)
    losses = []
    tokens = torch.randint(VOCAB, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    target = tokens[:, :-1], positions, segments
    inputs = (tokens[:, 1:], *target[1:], *target) if "encoder_decoder" in options.values() else target
    own = [x[mine] for x in (*inputs, tokens[:, 1:])]
    for _ in range(steps):
        total = torch.zeros(())
        engine.expect(parts)
        for batch in zip(*(x.chunk(parts) for x in own), strict=True):
            loss = engine.model(*batch) / (ROWS * LENGTH)
            engine.backward(loss)
            total += loss.detach()
        engine.step(lr=1e-2)
        torch.distributed.all_reduce(total)
        losses.append(total.item())
    return losses


def train_all(topology, cases):
    return [train(topology, engine_of(topology, *case), case[2]) for case in cases]


def adapt_all(topology):
    """Train adapters with every engine, each going on from the state of the one before too."""
    results, state, rank = [], None, 3
    for name, stage in (("local", 0), *(("deepspeed", stage) for stage in range(4))):
        engine = engine_of(topology, name, stage, {}, rank)
        base = [weight.detach().clone() for weight in engine.replicas() if not weight.requires_grad]
        losses = train(topology, engine, {})
        after = dict(engine.state())
        untouched = all(map(torch_equal, base, (w for w in engine.replicas() if not w.requires_grad)))
        again = engine_of(topology, name, stage, {}, rank)
        again.load_state((state or after).__getitem__, engine.optimizer_steps)
        state = after
        results.append(
            {
                "losses": losses, "names": list(after), "frozen": len(base), "untouched": untouched,
                "after": train(topology, again, {}, 2, parts=2),
            }
        )  # fmt: skip
    return results


def torch_equal(one, other):
    return bool((one == other).all())


def all_jobs(topology, cases):
    return train_all(topology, cases), adapt_all(topology)


@pytest.fixture(scope="module")
def results():
    engines = [("local", 0), ("deepspeed", 2), ("deepspeed", 3)]
    cases = [(*engine, options) for options in (BERT, T5) for engine in engines]
    first, second = run_ranks(all_jobs, 2, cases)
    assert first == second
    return first


def test_every_stage_is_plain_torch(results):
    first = results[0]
    for expected, *found in (first[:3], first[3:]):
        assert expected[-1] < expected[0]
        for losses in found:
            assert losses == pytest.approx(expected, rel=1e-5)


def test_steps_may_have_other_numbers_of_micro_batches(results):
    whole = results[1][0]["losses"], results[1][0]["after"]
    assert whole[1][1] < whole[1][0] < whole[0][-1]


def test_adapters_learn_alike_under_every_stage_and_are_all_that_is_kept(results):
    twin, *others = results[1]
    assert twin["losses"][-1] < twin["losses"][0]
    assert len(twin["names"]) == 3 * 2 * 2 * 3  # weight and moments, a and b, layers, projections
    assert all("lora" in name for name in twin["names"])
    for found in others:
        assert found["losses"] == pytest.approx(twin["losses"], rel=1e-5)
        assert found["after"] == pytest.approx(twin["after"], rel=1e-5)
        assert found["names"] == twin["names"]
    assert [found["frozen"] for found in results[1]] == [twin["frozen"]] * 4 + [0]
    assert all(found["untouched"] for found in results[1])
