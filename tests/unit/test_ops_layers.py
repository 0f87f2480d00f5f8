import pytest
import torch

from distllm.kernels import reference
from distllm.models.stack import sinusoids
from distllm.ops.mlp import activate, gated
from distllm.ops.norm import layer_norm, rms_norm
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


ACTIVATIONS = {
    "silu": lambda x: x * torch.sigmoid(x),
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "gelu_tanh": lambda x: x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
}


@pytest.mark.parametrize(("name", "definition"), ACTIVATIONS.items())
def test_activations_are_those_of_their_definitions(name, definition):
    x, up = draw(3, 50), draw(3, 50, seed=1)
    torch.testing.assert_close(activate(x, name), definition(x))
    torch.testing.assert_close(gated(x, up, name), definition(x) * up)


def test_layer_norm_is_that_of_the_definition():
    x, weight, bias = draw(2, 5, 16), draw(16, seed=1), draw(16, seed=2)
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    torch.testing.assert_close(layer_norm(x, weight, None, 1e-5), normed)
    torch.testing.assert_close(layer_norm(x, weight, bias, 1e-5), normed + bias)


@pytest.mark.parametrize("length", [1, 7])
def test_sinusoids_are_those_of_the_paper(length):
    found = sinusoids(torch.arange(length)[None], 6, torch.float64)
    for place in range(length):
        for pair in range(3):
            angle = torch.tensor(place / 10000 ** (2 * pair / 6), dtype=torch.float64)
            torch.testing.assert_close(found[0, place, pair], angle.sin(), rtol=0, atol=1e-6)
            torch.testing.assert_close(found[0, place, pair + 3], angle.cos(), rtol=0, atol=1e-6)
