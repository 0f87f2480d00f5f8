"""Dropout draws what it drew before a kill: its stream depends on the seed and the samples only."""

import pytest
import torch

from distllm.config.schema_model import ModelConfig
from distllm.config.shape import settle_shape
from distllm.models.init import build_model
from distllm.seeds import derive_seed


def losses(steps, **noise):
    config = ModelConfig(hidden_size=32, num_layers=2, num_heads=4, **noise)
    model = build_model(settle_shape(config, 64, 16), seed=0)
    tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))
    places = torch.arange(16).expand(2, 16)
    found = []
    for step in steps:
        torch.manual_seed(derive_seed(0, "noise", step))
        found.append(model(tokens, places, None, tokens).item())
    return found


@pytest.mark.parametrize(
    "noise", [{"dropout": 0.3}, {"layer_drop": 0.5}, {"dropout": 0.1, "layer_drop": 0.3}]
)
def test_a_step_draws_the_same_whatever_came_before(noise):
    whole = losses(range(4), **noise)
    assert losses(range(2, 4), **noise) == whole[2:]
    assert len(set(whole)) > 1


def test_without_dropout_the_stream_does_not_matter():
    assert len(set(losses(range(3)))) == 1
