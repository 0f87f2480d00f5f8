"""Stretched rotary positions are those of transformers, whose checkpoints rely on them."""

from dataclasses import fields, replace

import pytest
import torch

from distllm.config.schema_model import ModelConfig, RopeConfig
from distllm.ops.rope import rotation

HEAD_DIM, THETA = 64, 10000.0
CASES = {
    "linear": (
        RopeConfig("linear", 4.0),
        {"rope_type": "linear", "factor": 4.0},
    ),
    "llama3": (
        RopeConfig("llama3", 8.0, 256, 1.0, 4.0),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
    ),
    "yarn": (
        RopeConfig("yarn", 4.0, 512),
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    ),
    "yarn of other limits": (
        RopeConfig("yarn", 4.0, 512, beta_fast=16.0, beta_slow=2.0, attention_factor=1.5),
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 512,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "attention_factor": 1.5,
        },
    ),
}


@pytest.mark.parametrize(("rope", "theirs"), CASES.values(), ids=CASES.keys())
def test_angles_are_those_of_transformers(rope, theirs):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=HEAD_DIM,
        num_attention_heads=1,
        max_position_embeddings=2048,
        rope_parameters={"rope_theta": THETA, **theirs},
    )
    positions = torch.arange(0, 2000, 7)[None]
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1, dtype=torch.float32), positions)
    mine = rotation(positions, HEAD_DIM, THETA, torch.float32, rope)
    for is_, should in zip(mine, (cos, sin), strict=True):
        torch.testing.assert_close(is_[:, :, 0], should[..., : HEAD_DIM // 2], rtol=0, atol=2e-4)


@pytest.mark.parametrize("scaling", ["linear", "llama3", "yarn"])
def test_far_positions_turn_the_slowest_pair_as_near_ones_did(scaling):
    near, far = torch.tensor([[100]]), torch.tensor([[400]])
    plain = rotation(near, HEAD_DIM, THETA, torch.float64)
    rope = RopeConfig(scaling, 4.0, 128, attention_factor=1.0)
    stretched = rotation(far, HEAD_DIM, THETA, torch.float64, rope)
    torch.testing.assert_close(stretched[1][..., -1], plain[1][..., -1])


def test_llama3_and_yarn_leave_the_fastest_pair_alone():
    place = torch.tensor([[37]])
    plain = rotation(place, HEAD_DIM, THETA, torch.float64)
    for scaling in ("llama3", "yarn"):
        rope = RopeConfig(scaling, 4.0, 512, attention_factor=1.0)
        torch.testing.assert_close(
            rotation(place, HEAD_DIM, THETA, torch.float64, rope)[0][..., 0], plain[0][..., 0]
        )


@pytest.mark.parametrize("key", ["factor", "original_len", "beta_fast", "beta_slow", "attention_factor"])
def test_the_least_value_of_every_key_makes_a_rotation(key):
    (item,) = (item for item in fields(RopeConfig) if item.name == key)
    (theta,) = (item.metadata["minimum"] for item in fields(ModelConfig) if item.name == "rope_theta")
    rope = replace(RopeConfig("yarn", 4.0, 512), **{key: item.metadata["minimum"]})
    cos, sin = rotation(torch.tensor([[37]]), 8, theta, torch.float32, rope)
    assert cos.isfinite().all()
    assert sin.isfinite().all()
