"""Attention on a GPU against its definition in fp64 on the CPU."""

import pytest

pytestmark = pytest.mark.gpu

ROWS, LENGTH, HEADS, KV_HEADS, WIDTH = 2, 100, 4, 2, 64
# Largest error allowed, relative to the largest value: rounding of the inputs' format, with room for sums.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def segments():
    import torch

    borders = torch.tensor([[0, 3, 60, 61], [0, 1, 40, 99]])
    return torch.searchsorted(borders, torch.arange(LENGTH).repeat(ROWS, 1), right=True) - 1


def inputs(dtype):
    import torch

    generator = torch.Generator().manual_seed(0)
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    return [torch.randn(ROWS, LENGTH, h, WIDTH, generator=generator).to(dtype) for h in heads]


def gradients(out, *tensors, along):
    import torch

    return torch.autograd.grad(out, tensors, along)


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_and_its_gradients_match_the_definition(dtype, segmented):
    import torch

    from distllm.kernels.reference import attention
    from distllm.ops.attention import attend, plan_attention

    *qkv, along = inputs(getattr(torch, dtype))
    segments_BT = segments() if segmented else None
    exact = [x.double().requires_grad_() for x in qkv]
    expected = attention(*exact, segments_BT)
    expected = [expected, *gradients(expected, *exact, along=along.double())]

    device = torch.device("cuda")
    placed = [x.to(device).requires_grad_() for x in qkv]
    plan = plan_attention(None if segments_BT is None else segments_BT.to(device), device)
    out = attend(*placed, plan)
    found = [out, *gradients(out, *placed, along=along.to(device))]

    for name, is_, should in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        assert is_.device.type == "cuda"
        assert is_.dtype == getattr(torch, dtype)
        error = (is_.double().cpu() - should).abs().max() / should.abs().max()
        assert error <= TOLERANCE[dtype], f"{name} is off by {error:.1e}"


def test_documents_do_not_see_each_other():
    import torch

    from distllm.ops.attention import attend, plan_attention

    device = torch.device("cuda")
    q, k, v, _ = (x.to(device) for x in inputs(torch.float32))
    plan = plan_attention(segments().to(device), device)
    before = attend(q, k, v, plan)
    k[0, :60], v[0, :60] = 7.0, -7.0  # the first two documents of row 0
    after = attend(q, k, v, plan)
    assert torch.equal(before[0, 60:], after[0, 60:])
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(before[0, :60], after[0, :60])
