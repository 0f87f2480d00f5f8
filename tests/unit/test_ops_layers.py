import pytest
import torch

from distllm.kernels import reference
from distllm.ops.mlp import gated
from distllm.ops.norm import rms_norm
from distllm.ops.peak import measure_matmul_flops
from distllm.ops.rope import rotate, rotation


def draw(*size, dtype=torch.float64, seed=0):
    return torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.04)]
)
def test_norm_and_gate_are_those_of_the_definition(dtype, atol):
    x, weight, up = draw(2, 5, 16), draw(16, seed=1), draw(2, 5, 16, seed=2)
    pairs = [
        (rms_norm(x.to(dtype), weight.to(dtype), 1e-5), reference.rms_norm(x, weight, 1e-5)),
        (gated(x.to(dtype), up.to(dtype), "silu"), reference.swiglu(x, up)),
    ]
    for mine, should in pairs:
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), should, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 0.04)]
)
def test_rope_is_that_of_the_definition(dtype, atol):
    x, positions = draw(2, 5, 3, 16), torch.tensor([[0, 1, 2, 0, 1], [7, 8, 9, 10, 500]], dtype=torch.int32)
    mine = rotate(x.to(dtype), rotation(positions, 16, 1e4, dtype))
    assert mine.dtype == dtype
    torch.testing.assert_close(mine.double(), reference.rope(x, positions, 1e4), rtol=0, atol=atol)


def test_bf16_angles_are_exact_far_out():
    positions = torch.tensor([[100_003]])
    cos, _ = rotation(positions, 8, 1e4, torch.bfloat16)
    torch.testing.assert_close(
        cos[0, 0, 0, 0].double(), torch.tensor(100_003.0).double().cos(), rtol=0, atol=4e-3
    )


def test_peak_is_the_rate_of_real_products():
    flops = measure_matmul_flops(torch.device("cpu"), torch.float32, seconds=0.05)
    assert 1e9 < flops < 1e13
