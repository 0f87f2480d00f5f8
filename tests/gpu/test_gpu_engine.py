"""Two optimizer steps of DeepSpeed on a GPU against the plain-torch engine on the CPU."""

import functools
import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

STEPS, MICRO_BATCHES, ROWS, LENGTH, VOCAB = 2, 2, 2, 32, 200
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}


@functools.cache
def curve(engine, stage, compute, device, offload="none"):
    """Losses and gradient norms of two steps, taken in a process of their own."""
    command = [sys.executable, __file__, engine, str(stage), compute, device, offload]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("stage", "offload"), [*((stage, "none") for stage in range(4)), *((stage, "cpu") for stage in (1, 2, 3))]
)
def test_steps_match_the_plain_engine_on_the_cpu(stage, offload, compute):
    expected = curve("local", 0, "fp32", "cpu")
    found = curve("deepspeed", stage, compute, "cuda", offload)
    assert len(found["losses"]) == STEPS
    assert expected["losses"][1] < expected["losses"][0]
    assert found["losses"] == pytest.approx(expected["losses"], rel=TOLERANCE[compute])
    assert found["grad_norms"] == pytest.approx(expected["grad_norms"], rel=TOLERANCE[compute])
    assert found["skipped"] == [False] * STEPS


def train(engine_name, stage, compute, device, offload):
    import torch

    from distllm.config.engine import deepspeed_json
    from distllm.config.schema import ModelConfig, OptimConfig
    from distllm.config.shape import settle_shape
    from distllm.dist.build import build_engine
    from distllm.dist.topology import Topology, destroy_process_group, init_process_group
    from distllm.models.init import build_model
    from distllm.optim.optimizers import build_optimizer

    topology = Topology.single(device)
    init_process_group(topology, timeout_seconds=120)
    shape = settle_shape(ModelConfig(hidden_size=64, num_layers=2, num_heads=4), VOCAB, LENGTH)
    settings = deepspeed_json(
        zero_stage=stage,
        micro_batch_size=ROWS,
        grad_accum_steps=MICRO_BATCHES,
        world_size=1,
        grad_clip=1.0,
        compute=compute,
        bucket_bytes=1 << 20,
        device=device,
        offload=offload,
    )
    engine = build_engine(
        engine_name,
        build_model(shape, seed=0),
        lambda model: build_optimizer(model, OptimConfig()),
        settings=settings,
        topology=topology,
        timeout_seconds=120,
    )
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, VOCAB, (MICRO_BATCHES, ROWS, LENGTH + 1), generator=generator).to(
        topology.device
    )
    positions = torch.arange(LENGTH, device=topology.device).expand(ROWS, LENGTH)
    losses, results = [], []
    for _ in range(STEPS):
        total = 0.0
        for rows in tokens:
            loss = engine.model(rows[:, :-1], positions, None, rows[:, 1:]) / tokens[:, :, 1:].numel()
            total += loss.item()
            engine.backward(loss)
        losses.append(total)
        results.append(engine.step(lr=1e-2))
    destroy_process_group()
    return {
        "losses": losses,
        "grad_norms": [result.grad_norm for result in results],
        "skipped": [result.skipped for result in results],
    }


if __name__ == "__main__":
    name, stage, compute, device, offload = sys.argv[1:]
    print(json.dumps(train(name, int(stage), compute, device, offload)))
