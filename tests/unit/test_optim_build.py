from dataclasses import fields
from typing import get_args

import pytest
import torch
from torch import nn

from distllm.config.schema import ModelConfig, OptimConfig
from distllm.config.schema_optim import OptimizerName
from distllm.config.shape import settle_shape
from distllm.errors import ConfigError
from distllm.models.init import build_model
from distllm.optim.groups import describe_groups, parameter_groups
from distllm.optim.optimizers import build_optimizer
from distllm.optim.schedule import LearningRate


def model():
    return build_model(settle_shape(ModelConfig(hidden_size=32, num_layers=2, num_heads=4), 64, 16), seed=0)


def test_matrices_decay_and_norms_do_not():
    decay, rest = parameter_groups(model(), 0.1)
    assert (decay.weight_decay, rest.weight_decay) == (0.1, 0.0)
    assert all("norm" in name for name in rest.parameters)
    assert not any("norm" in name for name in decay.parameters)
    assert len(rest.parameters) == 5


def test_every_parameter_is_in_one_group_once():
    subject = model()
    grouped = [p for group in parameter_groups(subject, 0.1) for p in group.parameters.values()]
    assert len(grouped) == len(set(grouped)) == len(list(subject.parameters()))


def test_biases_do_not_decay_and_an_empty_group_is_left_out():
    decay, rest = parameter_groups(nn.Linear(3, 2), 0.5)
    assert (list(decay.parameters), list(rest.parameters)) == (["weight"], ["bias"])
    assert [group.name for group in parameter_groups(nn.Linear(3, 2, bias=False), 0.5)] == ["decay"]


def test_the_table_counts():
    table = describe_groups(parameter_groups(nn.Linear(30, 40), 0.5)).splitlines()
    assert table[1].split() == ["decay", "0.5", "1", "1.2k"]
    assert table[2].split() == ["no_decay", "0", "1", "40"]


def test_adamw_is_fused_and_configured():
    optimizer = build_optimizer(
        model(), OptimConfig(lr=0.3, beta1=0.8, beta2=0.7, eps=1e-4, weight_decay=0.2)
    )
    assert isinstance(optimizer, torch.optim.AdamW)
    for group, decay in zip(optimizer.param_groups, (0.2, 0.0), strict=True):
        assert group["fused"]
        assert (group["lr"], group["betas"], group["eps"]) == (0.3, (0.8, 0.7), 1e-4)
        assert group["weight_decay"] == decay


def test_a_step_is_that_of_the_paper():
    linear = nn.Linear(1, 1).double()
    nn.init.constant_(linear.weight, 2.0)
    optimizer = build_optimizer(linear, OptimConfig(lr=0.1, weight_decay=0.5))
    linear.weight.grad, linear.bias.grad = torch.full((1, 1), 3.0).double(), None
    optimizer.step()
    # Bias correction makes the first step lr * sign(gradient); decay is lr * weight_decay * weight.
    assert linear.weight.item() == pytest.approx(2.0 - 0.1 * 0.5 * 2.0 - 0.1, abs=1e-6)


def test_unknown_names_are_refused_with_a_hint():
    with pytest.raises(ConfigError, match="adamww"):
        build_optimizer(model(), OptimConfig(name="adamww"))
    rate = LearningRate("cosin", 1.0, 0, 10, 1, 0.0)
    with pytest.raises(ConfigError, match="cosin") as caught:
        rate.at(10)
    assert "cosine" in str(caught.value)


@pytest.mark.parametrize("key", ["beta1", "beta2", "eps", "weight_decay", "ema", "lr"])
@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_the_ends_of_every_range_make_an_update(name, key):
    """Weights that have had no gradient yet, such as embeddings of unseen ids, stay numbers too."""
    (item,) = (item for item in fields(OptimConfig) if item.name == key)
    for end in (item.metadata["minimum"], item.metadata["maximum"]):
        if end is None:
            continue
        subject = nn.Linear(4, 4, dtype=torch.bfloat16 if name == "adamw_bf16" else torch.float32)
        optimizer = build_optimizer(subject, OptimConfig(name=name, **{key: end}))
        for _ in range(2):
            for weight in subject.parameters():
                weight.grad = torch.zeros_like(weight)
            subject.weight.grad[0] = 1.0
            optimizer.step()
        assert all(weight.isfinite().all() for weight in subject.parameters()), end
