"""The oracles themselves, against torch's own implementations and numerical derivatives."""

import torch
import torch.nn.functional as F

from distllm.kernels import reference


def draw(*size, grad=False):
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(size, dtype=torch.float64, generator=generator).requires_grad_(grad)


def test_attention_is_torch_attention():
    q, k, v = draw(2, 9, 4, 8), draw(2, 9, 2, 8), draw(2, 9, 2, 8) + 1
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    for causal in (True, False):
        theirs = F.scaled_dot_product_attention(*heads_first, is_causal=causal, enable_gqa=True)
        torch.testing.assert_close(reference.attention(q, k, v, causal=causal), theirs.transpose(1, 2))


def test_attention_with_segments_is_torch_attention_with_a_mask():
    q, k, v = draw(2, 9, 4, 8), draw(2, 9, 2, 8), draw(2, 9, 2, 8) + 1
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1, 1, 1]])
    mask = (segments[:, None, :, None] == segments[:, None, None, :]) & torch.ones(9, 9).tril().bool()
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    theirs = F.scaled_dot_product_attention(*heads_first, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(reference.attention(q, k, v, segments), theirs.transpose(1, 2))


def test_rms_norm_is_torch_rms_norm():
    x, weight = draw(2, 3, 16), draw(16)
    torch.testing.assert_close(reference.rms_norm(x, weight, 1e-5), F.rms_norm(x, (16,), weight, 1e-5))


def test_swiglu_is_silu_times_up():
    gate, up = draw(2, 3, 16), draw(2, 3, 16) + 1
    torch.testing.assert_close(reference.swiglu(gate, up), F.silu(gate) * up)


def test_rope_keeps_lengths_and_depends_on_distance_only():
    q, k = draw(1, 1, 1, 8), draw(1, 1, 1, 8) + 1

    def product(i, j):
        turned = [reference.rope(x, torch.tensor([[p]]), 100.0) for x, p in ((q, i), (k, j))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product(5, 2), product(103, 100))
    assert not torch.isclose(product(5, 2), product(5, 3))
    torch.testing.assert_close(reference.rope(q, torch.tensor([[9]]), 100.0).norm(), q.norm())


def test_rope_turns_the_first_pair_by_one_radian_per_position():
    x = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64).view(1, 1, 1, 4)
    turned = reference.rope(x, torch.tensor([[2]]), 100.0).flatten()
    expected = torch.tensor([2.0, 0.0, 2.0, 0.0], dtype=torch.float64)
    expected = torch.stack([expected[0].cos(), expected[1], expected[2].sin(), expected[3]])
    torch.testing.assert_close(turned, expected)


def test_linear_cross_entropy_is_torch_cross_entropy():
    hidden, weight = draw(10, 6), draw(7, 6)
    targets = torch.tensor([0, 6, -100, 3, 3, -100, 1, 2, 4, 5])
    theirs = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    torch.testing.assert_close(reference.linear_cross_entropy(hidden, weight, targets), theirs)


def test_derivatives_are_those_of_finite_differences():
    segments = torch.tensor([[0, 0, 1]])
    qkv = draw(1, 3, 2, 2, grad=True), draw(1, 3, 1, 2, grad=True), draw(1, 3, 1, 2, grad=True)
    assert torch.autograd.gradcheck(lambda q, k, v: reference.attention(q, k, v, segments), qkv)
    x, weight = draw(1, 3, 4, grad=True), draw(4, grad=True)
    assert torch.autograd.gradcheck(lambda x, w: reference.rms_norm(x, w, 1e-5), (x, weight))
    assert torch.autograd.gradcheck(lambda x: reference.rope(x[:, :, None], segments, 10.0), (x,))
    assert torch.autograd.gradcheck(reference.swiglu, (x, draw(1, 3, 4, grad=True)))
    targets = torch.tensor([1, -100, 0])
    pair = draw(3, 4, grad=True), draw(5, 4, grad=True)
    assert torch.autograd.gradcheck(lambda h, w: reference.linear_cross_entropy(h, w, targets), pair)
