import pytest
import torch

from distllm.kernels import reference
from distllm.ops import cross_entropy
from distllm.ops.cross_entropy import linear_cross_entropy

TOKENS, WIDTH, VOCAB = 37, 12, 50


@pytest.fixture(autouse=True)
def several_chunks_the_last_one_short(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_TOKENS", 16)


def inputs(dtype=torch.float64, ignored=(0, 17, 36), scale=1.0):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, dtype=dtype, generator=generator)
    weight = torch.randn(VOCAB, WIDTH, dtype=dtype, generator=generator) * scale
    targets = torch.randint(VOCAB, (TOKENS,), generator=generator)
    targets[list(ignored)] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def both(hidden, weight, targets, factor=1.0):
    results = []
    for function in (linear_cross_entropy, reference.linear_cross_entropy):
        loss = function(hidden, weight, targets) * factor
        results.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
    return results


@pytest.mark.parametrize("ignored", [(), (0, 17, 36), range(16), range(TOKENS)])
def test_loss_and_gradients_are_those_of_the_definition(ignored):
    ours, exact = both(*inputs(ignored=ignored), factor=0.37)
    for mine, should in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine, should)


def test_fp32_is_within_a_hundred_thousandth():
    ours, exact = both(*inputs(torch.float32))
    for mine, should in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine, should, rtol=1e-5, atol=1e-5)


def test_logits_far_apart_stay_finite():
    ours, exact = both(*inputs(torch.float32, scale=1e4))
    assert exact[0].item() > 1e4
    for mine, should in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine, should, rtol=1e-4, atol=1e-2)


def test_bf16_gives_an_fp32_sum():
    hidden, weight, targets = inputs()
    exact = reference.linear_cross_entropy(hidden, weight, targets)
    gradients = torch.autograd.grad(exact, (hidden, weight))
    narrow = hidden.detach().bfloat16().requires_grad_(), weight.detach().bfloat16().requires_grad_()
    loss = linear_cross_entropy(*narrow, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-2, atol=0)
    for mine, should in zip(torch.autograd.grad(loss, narrow), gradients, strict=True):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine.double(), should, rtol=0, atol=0.05)


def test_a_second_backward_gives_the_same():
    hidden, weight, targets = inputs()
    loss = linear_cross_entropy(hidden, weight, targets)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(loss, (hidden, weight))
    assert all(map(torch.equal, first, second))


def test_one_frozen_input_leaves_the_other_gradient():
    hidden, weight, targets = inputs()
    expected = torch.autograd.grad(reference.linear_cross_entropy(hidden, weight, targets), weight)[0]
    loss = linear_cross_entropy(hidden.detach(), weight, targets)
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], expected)


def products(hidden, weight, targets):
    with torch.profiler.profile() as profile:
        loss = linear_cross_entropy(hidden, weight, targets)
    return loss, sum(
        event.count for event in profile.key_averages() if event.key in ("aten::mm", "aten::addmm_")
    )


def test_evaluation_computes_no_gradient():
    hidden, weight, targets = inputs()
    trained, with_gradients = products(hidden, weight, targets)
    with torch.no_grad():
        evaluated, without = products(hidden, weight, targets)
    assert torch.equal(trained, evaluated)
    assert with_gradients == 3 * without


def test_never_holds_all_logits():
    hidden, weight, targets = inputs()
    with torch.profiler.profile(profile_memory=True, record_shapes=True) as profile:
        linear_cross_entropy(hidden, weight, targets).backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest < TOKENS * VOCAB * hidden.element_size()
