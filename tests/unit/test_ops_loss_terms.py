"""What the cross-entropy can do besides itself, against torch's own functions in fp64."""

import pytest
import torch
import torch.nn.functional as F

from distllm.ops import cross_entropy
from distllm.ops.cross_entropy import LossTerms, linear_cross_entropy, soft_cap

TOKENS, WIDTH, VOCAB = 37, 12, 50


@pytest.fixture(autouse=True)
def several_chunks_the_last_one_short(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_TOKENS", 16)


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, dtype=dtype, generator=generator)
    weight = torch.randn(VOCAB, WIDTH, dtype=dtype, generator=generator)
    bias = torch.randn(VOCAB, dtype=dtype, generator=generator)
    targets = torch.randint(VOCAB, (TOKENS,), generator=generator)
    targets[[0, 17, 36]] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), targets


def definition(hidden, weight, bias, targets, softcap, terms):
    logits = hidden @ weight.T + (0 if bias is None else bias)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    loss = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=terms.label_smoothing)
    return loss + terms.z_loss * logits[targets != -100].logsumexp(1).square().sum()


CASES = {
    "bias": (True, 0.0, LossTerms()),
    "soft-cap": (False, 2.0, LossTerms()),
    "label smoothing": (False, 0.0, LossTerms(label_smoothing=0.1)),
    "z-loss": (False, 0.0, LossTerms(z_loss=0.01)),
    "all of it": (True, 3.0, LossTerms(label_smoothing=0.2, z_loss=0.1)),
}


@pytest.mark.parametrize(("biased", "softcap", "terms"), CASES.values(), ids=CASES.keys())
def test_loss_and_gradients_are_those_of_the_definition(biased, softcap, terms):
    hidden, weight, bias, targets = inputs()
    learned = (hidden, weight, bias) if biased else (hidden, weight)
    used = bias if biased else None
    loss = linear_cross_entropy(hidden, weight, targets, used, softcap=softcap, terms=terms)
    expected = definition(hidden, weight, used, targets, softcap, terms)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss * 0.37, learned)
    for mine, should in zip(found, torch.autograd.grad(expected * 0.37, learned), strict=True):
        torch.testing.assert_close(mine, should)


@pytest.mark.parametrize(("biased", "softcap", "terms"), CASES.values(), ids=CASES.keys())
def test_bf16_stays_close(biased, softcap, terms):
    hidden, weight, bias, targets = inputs()
    narrow = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight, bias)]
    used = narrow[2] if biased else None
    loss = linear_cross_entropy(*narrow[:2], targets, used, softcap=softcap, terms=terms)
    assert loss.dtype == torch.float32
    exact = definition(hidden, weight, bias if biased else None, targets, softcap, terms)
    torch.testing.assert_close(loss.double(), exact, rtol=2e-2, atol=0)
    loss.backward()
    assert all(x.grad.dtype == torch.bfloat16 for x in narrow[: 2 + biased])


def test_only_a_bias_that_learns_has_a_gradient():
    hidden, weight, bias, targets = inputs()
    loss = linear_cross_entropy(hidden.detach(), weight.detach(), targets, bias)
    expected = definition(hidden.detach(), weight.detach(), bias, targets, 0.0, LossTerms())
    torch.testing.assert_close(torch.autograd.grad(loss, bias), torch.autograd.grad(expected, bias))


def test_soft_cap_bounds_and_zero_leaves_alone():
    x = torch.tensor([-1e4, -1.0, 0.0, 0.5, 1e4])
    assert torch.equal(soft_cap(x, 0.0), x)
    assert soft_cap(x, 30.0).abs().max() <= 30.0
    torch.testing.assert_close(soft_cap(x, 1e6)[1:4], x[1:4])


def test_smoothing_wants_a_little_of_every_id():
    """With all weight on the target, smoothed loss is worse than that of a softer guess."""
    hidden, targets = torch.eye(3), torch.arange(3)
    terms = LossTerms(label_smoothing=0.3)
    hard = linear_cross_entropy(hidden, 50.0 * torch.eye(3), targets, terms=terms)
    soft = linear_cross_entropy(hidden, 2.0 * torch.eye(3), targets, terms=terms)
    assert soft < hard
    assert linear_cross_entropy(hidden, 50.0 * torch.eye(3), targets) < 1e-6
