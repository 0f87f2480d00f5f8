"""Windows, biases, soft-caps and other sequences, against the definition written with whole matrices."""

import itertools

import pytest
import torch

from distllm.ops.attention import Pattern, attend, attend_cached, cached_mask, plan_attention
from distllm.ops.relative import (
    alibi,
    alibi_slopes,
    along_diagonals,
    distances,
    relative_buckets,
    sum_diagonals,
)

CPU, META = torch.device("cpu"), torch.device("meta")
ROWS, LENGTH, SOURCE, HEADS = 2, 150, 9, 4
SEGMENTS = torch.tensor([[0] * 150, [0] * 7 + [1] * 140 + [2] * 3])


def draw(*size, seed=0):
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def definition(q, k, v, visible, pattern, bias=None):
    """Softmax of scores, with every head's keys repeated and everything hidden set to minus infinity."""
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) * (pattern.scale or q.shape[-1] ** -0.5)
    if pattern.softcap:
        scores = pattern.softcap * (scores / pattern.softcap).tanh()
    away = torch.arange(scores.shape[-1]) - torch.arange(scores.shape[-2])[:, None]
    if bias is not None:
        zero = bias.shape[1] // 2
        scores = scores + bias[:, (away + zero).clamp(0, bias.shape[1] - 1)]
    if pattern.causal:
        visible = visible & (away <= 0)
    if pattern.window:
        visible = visible & (away.abs() < pattern.window)
    weights = scores.masked_fill(~visible[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", weights.nan_to_num(), v)


PATTERNS = [
    Pattern(causal, window, scale, softcap)
    for causal, (window, scale, softcap) in itertools.product(
        (True, False), ((0, None, 0.0), (5, 0.3, 0.0), (90, None, 0.0), (0, 1.0, 2.0), (6, None, 3.0))
    )
]


@pytest.mark.parametrize("device", [CPU, META], ids=["documents", "masked"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_output_and_gradients_are_those_of_the_definition(pattern, biased, device):
    sizes = ((HEADS, 1), (2, 2), (2, 3))
    inputs = [draw(ROWS, LENGTH, n, 8, seed=s).requires_grad_() for n, s in sizes]
    if biased:
        inputs.append(draw(HEADS, 2 * LENGTH - 1, seed=4).requires_grad_())
    bias = inputs[3] if biased else None
    visible = SEGMENTS[:, :, None] == SEGMENTS[:, None, :]
    expected = definition(*inputs[:3], visible, pattern, bias)
    out = attend(*inputs[:3], plan_attention(SEGMENTS, device), pattern, bias)
    torch.testing.assert_close(out, expected)
    along = draw(*out.shape, seed=9)
    found = torch.autograd.grad(out, inputs, along)
    for gradient, should in zip(found, torch.autograd.grad(expected, inputs, along), strict=True):
        torch.testing.assert_close(gradient, should)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_queries_see_the_source_of_their_own_number(softcap):
    source = torch.tensor([[0] * 4 + [1] * 5, [0] * 2 + [2] * 7])
    q, k, v = (draw(ROWS, n, 2, 8, seed=s).requires_grad_() for s, n in enumerate((150, SOURCE, SOURCE)))
    pattern = Pattern(causal=False, softcap=softcap)
    expected = definition(q, k, v, SEGMENTS[:, :, None] == source[:, None, :], pattern)
    out = attend(q, k, v, plan_attention(SEGMENTS, CPU, source), pattern)
    torch.testing.assert_close(out, expected)
    assert torch.equal(out[1, 7:147], torch.zeros_like(out[1, 7:147]))  # nothing to see in the source
    found = torch.autograd.grad(out.square().sum(), (q, k, v))
    for gradient, should in zip(found, torch.autograd.grad(expected.square().sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(gradient, should)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p.causal], ids=str)
@pytest.mark.parametrize("new", [1, 40])
def test_cached_attention_is_the_end_of_the_whole(pattern, biased, new):
    q, k, v = (draw(1, LENGTH, 2, 8, seed=s) for s in range(3))
    bias = draw(2, 2 * LENGTH + 19, seed=4) if biased else None
    whole = attend(q, k, v, plan_attention(None, CPU), pattern, bias)
    mask = cached_mask(q[:, -new:].flatten(2), LENGTH, pattern.window, bias)
    torch.testing.assert_close(attend_cached(q[:, -new:], k, v, pattern, mask), whole[:, -new:])


def test_cached_rows_that_begin_late_do_not_see_what_is_before():
    q, k, v = (draw(2, 12, 2, 8, seed=s) for s in range(3))
    starts = torch.tensor([0, 5])
    out = attend_cached(q, k, v, mask=cached_mask(q.flatten(2), 12, starts_B=starts))
    late = attend_cached(q[1:, 5:], k[1:, 5:], v[1:, 5:])
    torch.testing.assert_close(out[1:, 5:], late)
    assert out.isfinite().all()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_document_never_feels_another_in_any_bit(pattern):
    q, k, v = (draw(ROWS, LENGTH, 2, 8, seed=s).float() for s in range(3))
    bias = draw(2, 2 * LENGTH - 1, seed=4).float()
    plan = plan_attention(SEGMENTS, CPU)
    before = attend(q, k, v, plan, pattern), attend(q, k, v, plan, pattern, bias)
    changed = SEGMENTS == 1
    for x in (q, k, v):
        x[changed] += 100.0
    after = attend(q, k, v, plan, pattern), attend(q, k, v, plan, pattern, bias)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[~changed], new[~changed])
        assert not torch.equal(old[changed], new[changed])


def test_windows_cost_less_than_everything():
    """Windows are cut into pieces: most of what they hide is never computed."""
    from distllm.ops.pieces import cut

    pieces = cut([[0, 1000, 0, 1000]], True, 10)
    assert sum((p.q1 - p.q0) * (p.k1 - p.k0) for p in pieces) < 1000 * 1000 / 10
    assert [p.q0 for p in pieces] == [0, *(p.q1 for p in pieces[:-1])]


def test_diagonals_are_summed_as_they_were_spread():
    bias = draw(3, 21).requires_grad_()
    gradient = draw(3, 4, 7, seed=1)
    along_diagonals(bias, 4, 7, -2).backward(gradient)
    total = torch.zeros(3, 21, dtype=torch.float64)
    sum_diagonals(total, gradient, -2)
    torch.testing.assert_close(total, bias.grad)


@pytest.mark.parametrize("causal", [True, False])
def test_relative_buckets_are_those_of_t5(causal):
    from transformers.models.t5.modeling_t5 import T5Attention

    away = distances(300, CPU)
    theirs = T5Attention._relative_position_bucket(away, not causal, num_buckets=32, max_distance=128)
    assert torch.equal(relative_buckets(away, 32, 128, causal=causal), theirs)


def test_alibi_slopes_are_those_of_the_paper():
    assert alibi_slopes(8, CPU).tolist() == [2.0**-n for n in range(1, 9)]
    twelve = alibi_slopes(12, CPU)
    assert twelve[:8].tolist() == alibi_slopes(8, CPU).tolist()
    assert twelve[8:].tolist() == pytest.approx([2.0 ** -(n + 0.5) for n in range(4)])
    assert alibi(alibi_slopes(2, CPU), 3)[0].tolist() == [-0.125, -0.0625, 0.0, -0.0625, -0.125]


@pytest.mark.parametrize("causal", [True, False])
def test_slopes_are_a_bias_by_distance(causal):
    q, k, v = (draw(ROWS, LENGTH, 2, 8, seed=s) for s in range(3))
    slopes, pattern, plan = (
        torch.tensor([0.5, 0.25]),
        Pattern(causal, window=5),
        plan_attention(SEGMENTS, CPU),
    )
    bias = torch.stack([-slope * distances(LENGTH, CPU).abs() for slope in slopes])
    expected = attend(q, k, v, plan, pattern, bias)
    torch.testing.assert_close(attend(q, k, v, plan, pattern, slopes_H=slopes), expected)
    assert not torch.allclose(attend(q, k, v, plan, pattern), expected)
    whole = attend(q, k, v, plan_attention(None, CPU), pattern, slopes_H=slopes)
    if causal:
        mask = cached_mask(q[:, -2:].flatten(2), LENGTH, pattern.window, slopes_H=slopes)
        late = attend_cached(q[:, -2:], k, v, pattern, mask)
        torch.testing.assert_close(late, whole[:, -2:])


def test_the_operator_keeps_torch_compile_contract():
    from distllm.ops import document_attention

    q, k, v = (draw(ROWS, LENGTH, 2, 8, seed=s).requires_grad_() for s in range(3))
    bias = draw(2, 2 * LENGTH - 1, seed=4).requires_grad_()
    pieces = plan_attention(SEGMENTS, CPU).pieces_P4
    torch.library.opcheck(document_attention.biased_documents, (q, k, v, bias, pieces, True, 6, 0.3, 2.0))
