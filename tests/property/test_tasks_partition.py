"""However the rows of a global batch are cut into micro-batches and dealt to ranks, the gradient is one."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distllm.config.schema import Config, ModelConfig
from distllm.config.shape import settle_shape
from distllm.data.batch import IGNORE_INDEX, Batch
from distllm.models.init import build_model
from distllm.tasks.registry import build_task

ROWS, LENGTH, VOCAB = 6, 12, 40
SHAPE = settle_shape(ModelConfig(hidden_size=16, num_layers=2, num_heads=2, init_std=0.2), VOCAB, LENGTH)
MODEL = build_model(SHAPE, seed=0).double()
TASK = build_task(Config(), SHAPE)


def global_batch(seed):
    numbers = np.random.default_rng(seed)
    tokens = numbers.integers(0, VOCAB, (ROWS, LENGTH + 1), dtype=np.int32)
    opens = numbers.random((ROWS, LENGTH)) < 0.2
    opens[:, 0] = False
    places = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), opens.shape)
    ignored = numbers.random((ROWS, LENGTH)) < numbers.random()
    return Batch(
        tokens_BT=tokens[:, :-1].copy(),
        targets_BT=np.where(ignored, np.int32(IGNORE_INDEX), tokens[:, 1:]),
        positions_BT=places - np.maximum.accumulate(np.where(opens, places, 0), axis=1),
        segments_BT=np.cumsum(opens, axis=1, dtype=np.int32),
        sample_ids_B=np.arange(ROWS),
    )


def gradient(batches):
    """What the engine sums over micro-batches and ranks."""
    total = sum(TASK.weight(batch) for batch in batches)
    MODEL.zero_grad()
    for batch in batches:
        (TASK.loss_sum(MODEL, batch) / max(1, total)).backward()
    return torch.cat([weight.grad.flatten() for weight in MODEL.parameters()])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), order=st.permutations(range(ROWS)), cuts=st.sets(st.integers(1, ROWS - 1)))
def test_any_partition_gives_the_same_gradient(seed, order, cuts):
    batch = global_batch(seed)
    bounds = [0, *sorted(cuts), ROWS]
    parts = [batch[list(order[a:b])] for a, b in pairwise(bounds)]
    torch.testing.assert_close(gradient(parts), gradient([batch]), rtol=0, atol=1e-10)
