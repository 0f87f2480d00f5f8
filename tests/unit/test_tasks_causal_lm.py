from dataclasses import replace

import numpy as np
import pytest
import torch

from distllm.config.schema import Config, DataConfig, ModelConfig, TaskConfig
from distllm.config.shape import settle_shape
from distllm.data.batch import IGNORE_INDEX, Batch
from distllm.errors import ConfigError, DataError
from distllm.models.init import build_model
from distllm.tasks.registry import build_task

LENGTH = 8
SHAPE = settle_shape(ModelConfig(hidden_size=16, num_layers=2, num_heads=2, init_std=0.3), 64, LENGTH)


@pytest.fixture(scope="module")
def model():
    return build_model(SHAPE, seed=0)


@pytest.fixture
def batch():
    tokens = np.arange(18, dtype=np.int32).reshape(2, 9)
    return Batch(
        tokens_BT=tokens[:, :-1].copy(),
        targets_BT=tokens[:, 1:].copy(),
        positions_BT=np.array([[0, 1, 2, 0, 1, 2, 3, 4], range(8)], dtype=np.int32),
        segments_BT=np.array([[0, 0, 0, 1, 1, 1, 1, 1], [0] * 8], dtype=np.int32),
        sample_ids_B=np.arange(2),
    )


def task(mask_documents=True):
    return build_task(Config(data=DataConfig(mask_documents=mask_documents)), SHAPE)


def test_weight_counts_the_targets(batch):
    assert task().weight(batch) == 16
    batch.targets_BT[0, :5] = IGNORE_INDEX
    assert task().weight(batch) == 11


def test_loss_is_summed_over_the_targets(model, batch):
    batch.targets_BT[1, 2:] = IGNORE_INDEX
    with torch.no_grad():
        arrays = batch.tokens_BT, batch.positions_BT, batch.segments_BT
        log_probs = model(*map(torch.from_numpy, arrays)).log_softmax(-1)
        counted = [(row, t) for row in (0, 1) for t in range(8) if batch.targets_BT[row, t] >= 0]
        expected = -sum(log_probs[row, t, batch.targets_BT[row, t]] for row, t in counted)
        loss = task().loss_sum(model, batch)
    assert loss.shape == ()
    torch.testing.assert_close(loss, expected)


def test_documents_are_masked_only_if_asked(model, batch):
    def changes(mask_documents):
        other = replace(batch, tokens_BT=batch.tokens_BT.copy(), targets_BT=batch.targets_BT.copy())
        other.targets_BT[0, :3] = batch.targets_BT[0, :3] = IGNORE_INDEX
        other.tokens_BT[0, :3] += 30
        with torch.no_grad():
            return not torch.equal(*(task(mask_documents).loss_sum(model, x) for x in (batch, other)))

    assert not changes(mask_documents=True)
    assert changes(mask_documents=False)


def test_without_masks_a_row_is_one_text(model, batch):
    with torch.no_grad():
        tokens, targets = torch.from_numpy(batch.tokens_BT), torch.from_numpy(batch.targets_BT)
        expected = model(tokens, torch.arange(LENGTH).expand(2, -1), None, targets)
        assert torch.equal(task(mask_documents=False).loss_sum(model, batch), expected)


@pytest.mark.parametrize("field", ["tokens_BT", "targets_BT"])
def test_an_id_the_model_does_not_know_is_a_data_error(model, batch, field):
    getattr(batch, field)[1, 7] = 64
    with pytest.raises(DataError, match="64"):
        task().loss_sum(model, batch)


def test_an_unknown_task_is_refused():
    with pytest.raises(ConfigError, match="causal"):
        build_task(Config(task=TaskConfig(name="causal")), SHAPE)
