"""The attention oracle against torch's attention, against definitions, and against finite differences."""

import pytest
import torch
import torch.nn.functional as F

from distllm.kernels.attention.reference import attention, packed_attention


def draw(*size):
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(size, dtype=torch.float64, generator=generator)


def heads_first(*tensors):
    return [x.transpose(1, 2) for x in tensors]


@pytest.mark.parametrize("causal", [True, False])
def test_it_is_torchs_attention(causal):
    q, k, v = draw(2, 9, 4, 8), draw(2, 9, 2, 8), draw(2, 9, 2, 8) + 1
    theirs = F.scaled_dot_product_attention(*heads_first(q, k, v), is_causal=causal, enable_gqa=True)
    torch.testing.assert_close(attention(q, k, v, causal=causal)[0], theirs.transpose(1, 2))


def test_the_last_query_sees_the_last_key():
    q, k, v = draw(1, 3, 2, 8), draw(1, 7, 2, 8), draw(1, 7, 2, 8) + 1
    mask = torch.ones(3, 7, dtype=torch.bool).tril(4)
    theirs = F.scaled_dot_product_attention(*heads_first(q, k, v), attn_mask=mask)
    torch.testing.assert_close(attention(q, k, v)[0], theirs.transpose(1, 2))


@pytest.mark.parametrize("causal", [True, False])
def test_window_and_slopes_are_a_mask_and_a_bias(causal):
    q, k, v, slopes = draw(1, 6, 2, 8), draw(1, 9, 2, 8), draw(1, 9, 2, 8) + 1, torch.tensor([0.5, 0.25])
    distance = torch.arange(6)[:, None] + 3 - torch.arange(9)
    seen = (distance.abs() < 3) & ((distance >= 0) | (not causal))
    bias = (-slopes[:, None, None] * distance.abs()).masked_fill(~seen, -torch.inf)[None].double()
    theirs = F.scaled_dot_product_attention(*heads_first(q, k, v), attn_mask=bias)
    ours = attention(q, k, v, causal=causal, window=3, slopes_H=slopes)[0]
    torch.testing.assert_close(ours, theirs.transpose(1, 2))


def test_a_sink_is_a_key_without_a_value_and_softcap_bends_the_scores():
    q, k, v, sinks = draw(1, 4, 2, 8), draw(1, 4, 2, 8) * 3, draw(1, 4, 2, 8), draw(2)
    scores = torch.einsum("bthd,bshd->bhts", q, k) * 0.2
    scores = (4 * torch.tanh(scores / 4)).masked_fill(~torch.ones(4, 4).tril().bool(), -torch.inf)
    with_sink = torch.cat([scores, sinks[:, None, None].expand(1, 2, 4, 1)], dim=-1)
    expected = torch.einsum("bhts,bshd->bthd", with_sink.softmax(-1)[..., :-1], v)
    out, lse = attention(q, k, v, softcap=4.0, scale=0.2, sinks_H=sinks)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, with_sink.logsumexp(-1))


def test_queries_that_see_nothing_return_zero_and_no_gradient():
    q, k, v = (x.requires_grad_() for x in (draw(1, 5, 1, 8), draw(1, 2, 1, 8), draw(1, 2, 1, 8)))
    out, lse = attention(q, k, v)
    assert torch.equal(out[:, :3], torch.zeros_like(out[:, :3]))
    assert lse.isneginf().tolist() == [[[True, True, True, False, False]]]
    (grad,) = torch.autograd.grad(out.sum(), q)
    assert grad.isfinite().all()


def test_packed_documents_are_attended_to_on_their_own():
    q, k, v = draw(1, 9, 2, 8), draw(1, 10, 1, 8), draw(1, 10, 1, 8)
    borders = torch.tensor([0, 4, 4, 9], dtype=torch.int32), torch.tensor([0, 3, 5, 10], dtype=torch.int32)
    out, lse = packed_attention(q, k, v, *borders, window=3)
    alone = attention(q[:, 4:], k[:, 5:], v[:, 5:], window=3)
    torch.testing.assert_close(out[:, 4:], alone[0])
    torch.testing.assert_close(lse[..., 4:], alone[1])


def test_derivatives_are_those_of_finite_differences():
    q, k, v, sinks = (
        x.requires_grad_() for x in (draw(1, 4, 2, 4), draw(1, 5, 1, 4), draw(1, 5, 1, 4), draw(2))
    )

    def everything(q, k, v, sinks):
        slopes = torch.tensor([0.5, 0.25])
        return attention(q, k, v, sinks_H=sinks, slopes_H=slopes, softcap=3.0, window=3)

    assert torch.autograd.gradcheck(everything, (q, k, v, sinks))
