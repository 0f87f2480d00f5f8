"""Activation checkpointing under every ZeRO stage: the losses of one rank that recomputes nothing."""

import pytest
from engine_jobs import make_engine
from ranks import run_ranks

CASES = [(stage, mode) for stage in range(4) for mode in ("none", "full", "selective")]


def losses_of(topology, cases):
    """Train a small decoder three steps in each case; return the global losses."""
    import torch

    from distllm.config.schema_model import ModelConfig
    from distllm.config.shape import settle_shape
    from distllm.dist.collectives import sum_over_ranks
    from distllm.models.init import build_model
    from distllm.models.recompute import recompute_blocks

    shape = settle_shape(ModelConfig(hidden_size=256, num_layers=2, num_heads=4), 256, 32)
    positions = torch.arange(32).repeat(2, 1)
    found = {}
    for stage, mode in cases:
        model = build_model(shape, seed=0)
        recompute_blocks(model, mode)
        engine = make_engine(topology, "deepspeed", stage, "fp32", model=model)
        losses = []
        with torch.no_grad():  # what a run does first: ZeRO-3 then expects other modules than training has
            engine.model(positions, positions, None, positions)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            samples = torch.randint(0, 256, (8, 32), generator=generator)
            mine, total = samples[topology.rank :: topology.world_size], 0.0
            for rows in mine.chunk(2):
                places = positions[:1].expand(len(rows), -1)
                loss = engine.model(rows, places, None, rows)
                total += loss.item()
                engine.backward(loss / 256)
            engine.step(lr=1e-3)
            losses.append(sum_over_ranks([total], topology)[0])
        found[f"{stage}-{mode}"] = losses
    return found


@pytest.mark.slow
@pytest.mark.dist
def test_recomputation_changes_no_loss_at_any_stage():
    found = run_ranks(losses_of, 2, CASES, timeout=280)[0]
    alone = run_ranks(losses_of, 1, [(0, "none")], timeout=120)[0]["0-none"]
    assert alone[-1] < alone[0]
    for case, losses in found.items():
        assert losses == pytest.approx(alone, rel=1e-5), case
