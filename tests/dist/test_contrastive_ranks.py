"""In-batch negatives across ranks: loss and gradient are those of one big batch."""

import numpy as np
import pytest
from ranks import run_ranks

ROWS, MICRO, VOCAB = 8, 2, 30


def global_batch():
    from distllm.data.batch import IGNORE_INDEX, Batch, Source

    numbers = np.random.default_rng(5)

    def side(width):
        tokens = numbers.integers(1, VOCAB, (ROWS, width), dtype=np.int32)
        segments = np.zeros_like(tokens)
        segments[:, -2:] = 1
        return tokens, np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape).copy(), segments

    tokens, positions, segments = side(9)
    targets = np.full_like(tokens, IGNORE_INDEX)
    targets[:, 0] = 0
    targets[3] = IGNORE_INDEX  # a damaged row
    return Batch(tokens, targets, positions, segments, np.arange(ROWS), Source(*side(7)))


def step(topology):
    import torch
    from fakes import FakeEncoder

    from distllm.dist.collectives import sum_over_ranks
    from distllm.tasks.contrastive import Contrastive

    torch.manual_seed(0)
    model, task = FakeEncoder(VOCAB, "embedding"), Contrastive(VOCAB, 0.3)
    own = list(range(topology.rank, ROWS, topology.world_size))
    whole = global_batch()
    batches = [whole[own[at : at + MICRO]] for at in range(0, len(own), MICRO)]
    (weight,) = sum_over_ranks([sum(map(task.weight, batches))], topology)
    task.begin(model, batches, topology)
    loss = 0.0
    for batch in batches:
        part = task.loss_sum(model, batch) / weight
        part.backward()
        loss += float(part.detach())
    gradient = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    summed = sum_over_ranks([loss, *gradient.tolist()], topology)
    return {"weight": weight, "loss": summed[0], "gradient": summed[1:]}


@pytest.mark.dist
def test_two_ranks_see_each_others_passages():
    from distllm.dist.topology import Topology

    alone = step(Topology.single())
    first, second = run_ranks(step, 2)
    assert first == second
    assert first["weight"] == alone["weight"] == ROWS - 1
    assert first["loss"] == pytest.approx(alone["loss"], abs=1e-5)
    np.testing.assert_allclose(first["gradient"], alone["gradient"], rtol=1e-3, atol=1e-6)
    assert max(map(abs, alone["gradient"])) > 1e-3
