"""Norms, rotary positions, gated activations and cross-entropy against their definitions."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interp.pointwise_cases import CASES, Case, draw, errors, evaluate

from distllm.kernels import reference
from distllm.kernels.pointwise import op

FP32_ERROR = 2e-5
LOW_PRECISION_RATIO = 2.0
relaxed = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def check_exact(case, order=3):
    tensors = draw(case, torch.float32)
    found = evaluate(case, case.ours, tensors, torch.float32, order)
    found = errors(found, evaluate(case, case.exact, tensors, torch.float64))
    assert max(found) <= FP32_ERROR, found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fp32_is_exact(case):
    check_exact(case)


def check_low(case, dtype):
    tensors = draw(case, dtype)
    exact = evaluate(case, case.exact, tensors, torch.float64)
    found = errors(evaluate(case, case.ours, tensors, dtype), exact)
    eager = errors(evaluate(case, case.exact, tensors, dtype), exact)
    # what eager happens to hit exactly may still be rounded once
    unit = [torch.finfo(dtype).eps * x.abs().max().item() for x in exact]
    above = [
        (f, e) for f, e, u in zip(found, eager, unit, strict=True) if f > max(LOW_PRECISION_RATIO * e, u)
    ]
    assert not above, f"ours, eager: {above}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_low_precision_errs_at_most_twice_as_much_as_eager(case, dtype):
    check_low(case, dtype)


@relaxed
@given(rows=st.integers(1, 9), channels=st.integers(1, 70), strided=st.booleans())
def test_norms_of_any_shape(rows, channels, strided):
    case = Case(
        "drawn",
        ((rows, channels), (channels,)),
        lambda x, w: op.rms_norm(x, w, 1e-2)[0],
        lambda x, w: reference.rms_norm(x, w, 1e-2),
        strided,
    )
    check_exact(case, order=rows)


@relaxed
@given(tokens=st.integers(0, 17), vocabulary=st.integers(1, 70), seed=st.integers(0, 99))
def test_cross_entropy_of_any_shape(tokens, vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 8, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, 8, generator=generator, requires_grad=True)
    targets = torch.randint(-1, vocabulary, (tokens,), generator=generator)
    ours = op.linear_cross_entropy(hidden, weight, targets, ignore_index=-1).sum()
    theirs = reference.linear_cross_entropy(hidden.double(), weight.double(), targets, ignore_index=-1)
    torch.testing.assert_close(ours.double(), theirs, atol=1e-4, rtol=1e-5)
    if tokens:
        grads = [torch.autograd.grad(loss, (hidden, weight)) for loss in (ours, theirs)]
        assert all((a - b).abs().max() <= FP32_ERROR for a, b in zip(*grads, strict=True))


def test_a_common_shift_of_all_logits_changes_nothing():
    """Logits are multiples of 1/64 near 0 and near 10 000: both are exact in fp32."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randint(-8, 8, (10, 8), generator=generator) / 8.0
    weight = torch.randint(-8, 8, (70, 8), generator=generator) / 8.0
    targets = torch.randint(0, 70, (10,), generator=generator)
    results = []
    for shift in (0.0, 1e4):
        inputs = [
            torch.cat([hidden, torch.ones(10, 1)], 1).requires_grad_(),
            torch.cat([weight, torch.full((70, 1), shift)], 1).requires_grad_(),
        ]
        loss = op.linear_cross_entropy(*inputs, targets, label_smoothing=0.1)
        grads = torch.autograd.grad(loss.sum(), inputs)
        results.append([loss.detach(), grads[0][:, :8], grads[1]])
    for plain, shifted in zip(*results, strict=True):
        torch.testing.assert_close(shifted, plain, atol=2e-6, rtol=2e-6)


def test_the_gradient_of_the_projection_is_summed_in_fp32():
    """In bf16, 256 + 1 is 256: a sum over chunks of 7 tokens would stand still."""
    hidden = torch.ones(70, 16, dtype=torch.bfloat16)
    weight = torch.zeros(2, 16, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(70, dtype=torch.long)
    upstream = torch.tensor([256.0] * 7 + [0.25] * 63)
    (grad,) = torch.autograd.grad(op.linear_cross_entropy(hidden, weight, targets), weight, upstream)
    exact = -(256.0 * 7 + 0.25 * 63) / 2
    assert grad[0].float().sub(exact).abs().max() <= abs(exact) * torch.finfo(torch.bfloat16).eps / 2


@pytest.mark.parametrize("case", [CASES[1], CASES[6]], ids=str)
def test_the_order_of_programs_changes_no_bit(case):
    tensors = draw(case, torch.bfloat16)
    first, *others = [evaluate(case, case.ours, tensors, torch.bfloat16, order) for order in (None, 1, 2)]
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))
