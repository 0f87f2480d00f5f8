import subprocess
import sys

import pytest

from distllm.config.schema import ModelConfig
from distllm.config.shape import settle_shape
from distllm.plan.flops import flops_per_token, matmul_params
from distllm.plan.hardware import ACCELERATORS, find_accelerator


def shape(**changes):
    sizes = {"hidden_size": 64, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 96}
    return settle_shape(ModelConfig(**{**sizes, **changes}), 128, 32)


@pytest.mark.parametrize("tie", [True, False])
def test_the_convention_is_what_torch_counts(tie):
    """torch's own counter, which does not see inside fused attention, plus attention by definition."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from distllm.kernels.reference import attention
    from distllm.models.init import build_model

    settled, length = shape(tie_embeddings=tie), 32
    model = build_model(settled, seed=0)
    tokens = torch.zeros(1, length, dtype=torch.int64)
    with FlopCounterMode(display=False) as products, torch.no_grad():
        model(tokens, tokens)
    heads = torch.zeros(1, length, settled.num_heads, settled.head_dim)
    with FlopCounterMode(display=False) as attended:
        attention(heads, heads, heads)
    causal = attended.get_total_flops() * (length + 1) / (2 * length)
    forward = products.get_total_flops() + settled.num_layers * causal
    assert flops_per_token(settled, length) * length == pytest.approx(3 * forward)


def test_an_untied_input_embedding_costs_nothing():
    tied, untied = shape(tie_embeddings=True), shape(tie_embeddings=False)
    assert matmul_params(tied) == matmul_params(untied)
    norms = 2 * 64 * 3 + 64
    assert matmul_params(tied) == tied.num_params - norms


def test_longer_sequences_cost_more_per_token_by_attention_only():
    settled = shape()
    assert flops_per_token(settled, 2001) - flops_per_token(settled, 1) == 6 * 3 * 64 * 2000


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA B200", 2250),
    ],
)
def test_known_devices_have_their_dense_peak(name, teraflops):
    found = find_accelerator(name)
    assert found is not None
    assert found.bf16_flops == teraflops * 1e12
    assert all(entry.source for entry in ACCELERATORS)


def test_an_unknown_device_has_none():
    assert find_accelerator("NVIDIA GeForce GTX 1080") is None


def test_planning_needs_no_torch():
    code = "import sys, distllm.plan.flops, distllm.plan.hardware; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


FAMILIES = {
    "a plain MLP": {"gated": False},
    "an encoder": {"family": "encoder"},
    "an encoder-decoder": {
        "family": "encoder_decoder",
        "num_encoder_layers": 2,
        "tie_embeddings": False,
    },
}


@pytest.mark.parametrize("changes", FAMILIES.values(), ids=FAMILIES.keys())
def test_the_products_of_every_family_are_counted(changes):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from distllm.models.init import build_model

    settled, length = shape(**changes), 32
    model = build_model(settled, seed=0)
    tokens = torch.zeros(1, length, dtype=torch.int64)
    inputs = (
        (tokens, tokens, None, tokens, tokens) if settled.family == "encoder_decoder" else (tokens, tokens)
    )
    with FlopCounterMode(display=False) as products, torch.no_grad():
        model(*inputs)
    assert 2 * matmul_params(settled) * length == pytest.approx(products.get_total_flops())


def test_attention_that_sees_both_ways_costs_twice_as_much():
    causal, whole = shape(), shape(family="encoder")
    heads = settled_attention(causal, 100), settled_attention(whole, 100)
    assert heads[1] / heads[0] == pytest.approx(200 / 101)


def settled_attention(settled, length):
    return flops_per_token(settled, length) - 6.0 * matmul_params(settled)
