"""Ranks that share rows by their positions: the loss and the gradients of one rank that has them whole."""

from dataclasses import replace

import pytest
from engine_jobs import make_optimizer
from ranks import run_ranks

ROWS, LENGTH, VOCAB = 4, 24, 256
MODELS = {
    "grouped heads": {"num_kv_heads": 4},
    "one key/value head": {"num_kv_heads": 1},
    "normed, capped, windows": {"qk_norm": "head", "attention_softcap": 20.0, "sliding_window": 5, "window_pattern": "LG"},
    "bias by distance": {"positions": "relative"},
    "slopes": {"positions": "alibi", "num_kv_heads": 2},
    "learned positions": {"positions": "learned"},
}
TOLERANCE = 2e-6


def model_of(checkpointing="none", **keys):
    from distllm.config.schema_model import ModelConfig
    from distllm.config.shape import settle_shape
    from distllm.models.init import build_model
    from distllm.models.recompute import recompute_blocks

    shape = settle_shape(ModelConfig(hidden_size=64, num_layers=2, num_heads=4, **keys), VOCAB, LENGTH)
    model = build_model(shape, seed=0)
    recompute_blocks(model, checkpointing)
    return model


def rows_of(step):
    """Packed rows whose documents end anywhere, also on a border between ranks, and in padding."""
    import torch

    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCAB, (ROWS, LENGTH + 1), generator=generator)
    opens = torch.rand(ROWS, LENGTH, generator=generator) < 0.2
    opens[0, LENGTH // 2] = True
    segments = opens.cumsum(1)
    starts = torch.where(opens, torch.arange(LENGTH), 0).cummax(1).values
    targets = tokens[:, 1:].clone()
    targets[1, -5:] = -100
    return tokens[:, :-1], torch.arange(LENGTH) - starts, segments, targets


def sharing(topology):
    from distllm.dist.sequence import SequenceGroup

    topology = replace(topology, sequence_ranks=topology.world_size)
    return SequenceGroup(topology, 60.0)


def gradients_of(model, loss, ranks):
    """Return the loss and all gradients as one vector, summed over ``ranks``."""
    import torch

    model.zero_grad()
    loss.backward()
    found = [loss.detach().reshape(1)]
    found += [torch.zeros(w.numel()) if w.grad is None else w.grad.flatten() for w in model.parameters()]
    vector = torch.cat(found)
    if ranks > 1:
        torch.distributed.all_reduce(vector)
    return vector


def compare(topology):
    """Return for each model how far the shared loss and gradient are from the whole ones, relatively."""
    group, errors = sharing(topology), {}
    for name, keys in MODELS.items():
        model, batch = model_of(**keys), rows_of(0)
        for segments in (batch[2], None):
            arguments = (*batch[:2], segments, batch[3])
            model.sequence = None
            alone = gradients_of(model, model(*arguments), 1)
            model.sequence = group
            together = gradients_of(model, model(*arguments), topology.world_size)
            errors[f"{name}, packed: {segments is not None}"] = [
                abs(float(together[0] / alone[0]) - 1),
                float((together[1:] - alone[1:]).norm() / alone[1:].norm()),
                float(alone[1:].norm()),
            ]
    return errors


def curve(topology, name, stage, group, checkpointing="none"):
    """Train three steps of two micro-batches; return the losses and the gradients' norms."""
    from distllm.config.engine import deepspeed_json
    from distllm.dist.build import build_engine
    from distllm.dist.collectives import sum_over_ranks

    model = model_of(checkpointing, num_kv_heads=1)
    model.sequence = group
    settings = deepspeed_json(
        zero_stage=stage, micro_batch_size=2, grad_accum_steps=2, world_size=topology.world_size,
        grad_clip=0.5, compute="fp32", bucket_bytes=4096, device="cpu",
    )  # fmt: skip
    engine = build_engine(name, model, make_optimizer, settings=settings, topology=topology, timeout_seconds=60)
    found = []
    for step in range(3):
        batch, total = rows_of(step), 0.0
        weight = int((batch[3] != -100).sum())
        for rows in (slice(0, 2), slice(2, 4)):
            loss = engine.model(*(part[rows] for part in batch))
            total += loss.item()
            engine.backward(loss / weight)
        norm = engine.step(lr=1e-2).grad_norm
        found.append([sum_over_ranks([total], topology)[0] / weight, norm])
    return found


def train(topology):
    from distllm.dist.topology import Topology

    group = sharing(topology)
    curves = {"alone": curve(Topology.single(), "local", 0, None), "local": curve(topology, "local", 0, group)}
    for stage in range(4):
        kept = "selective" if stage % 2 else "full"
        curves[f"zero{stage}, {kept}"] = curve(topology, "deepspeed", stage, group, kept)
    return curves


def both(topology):
    return compare(topology), train(topology)


@pytest.mark.slow
@pytest.mark.dist
def test_two_ranks_share_rows_with_the_losses_and_gradients_of_one():
    errors, curves = run_ranks(both, 2, timeout=280)[0]
    for case, (loss, gradient, size) in errors.items():
        assert loss < TOLERANCE and gradient < TOLERANCE, (case, loss, gradient)
        assert size > 0.1, case
    alone = curves.pop("alone")
    assert alone[-1][0] < alone[0][0]
    for case, found in curves.items():
        for (loss, norm), (expected_loss, expected_norm) in zip(found, alone, strict=True):
            assert loss == pytest.approx(expected_loss, rel=TOLERANCE), case
            assert norm == pytest.approx(expected_norm, rel=1e-5), case
