"""The pointwise kernels beside their definitions in fp64, and those run eagerly in low precision."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from interp.sanitizer import Sanitizer

from distllm.kernels import reference
from distllm.kernels.pointwise import op


@dataclass(frozen=True)
class Case:
    """``ours`` and ``exact`` take tensors of ``sizes``."""

    name: str
    sizes: tuple[tuple[int, ...], ...]
    ours: Any
    exact: Any
    strided: bool = False
    constants: tuple[int, ...] = ()  # which of the tensors get no gradient

    def __str__(self):
        return self.name


def draw(case, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for size in case.sizes:
        wide = (*size[:-1], size[-1] + 8) if case.strided and len(size) > 1 else size
        tensors.append(torch.randn(wide, generator=generator).to(dtype)[..., : size[-1]])
    return tensors


def evaluate(case, function, tensors, dtype, order=None):
    """Return the outputs of ``function`` and the gradients of all but the constants, upstreams drawn."""
    inputs = [x.detach().to(dtype).requires_grad_(i not in case.constants) for i, x in enumerate(tensors)]
    with Sanitizer(order=order):
        outputs = function(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        generator = torch.Generator().manual_seed(5)
        rounded = [torch.randn(x.shape, generator=generator).to(tensors[0].dtype) for x in outputs]
        upstream = [x.to(out.dtype) for x, out in zip(rounded, outputs, strict=True)]
        wanted = [x for x in inputs if x.requires_grad]
        grads = torch.autograd.grad(outputs, wanted, upstream)
    return [x.detach() for x in (*outputs, *grads)]


def errors(found, exact):
    for is_, should in zip(found, exact, strict=True):
        assert is_.shape == should.shape
        assert is_.isfinite().all()
    return [(is_.double() - should).abs().max().item() for is_, should in zip(found, exact, strict=True)]


def layer_norm(x, weight, bias, residual):
    summed = x + residual
    return F.layer_norm(summed, weight.shape, weight, bias, 1e-5), summed


def rms_norm(x, weight, residual):
    summed = x + residual
    return reference.rms_norm(summed, weight, 1e-5), summed


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


TARGETS = torch.tensor([3, -100, 0, 69, 40, 33, -100, 31, 32, 5])
TERMS = {"label_smoothing": 0.1, "z_loss": 0.05, "softcap": 3.0}


def cross_entropy(hidden, weight, *, label_smoothing=0.0, z_loss=0.0, softcap=0.0):
    logits = hidden @ weight.T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    loss = F.cross_entropy(logits, TARGETS, reduction="none", label_smoothing=label_smoothing)
    return (loss + z_loss * logits.logsumexp(-1).square()).where(TARGETS != -100, 0.0)


HEADS = ((2, 5, 17, 12), (2, 5, 6), (2, 5, 6))
CASES = [
    Case("rms_norm", ((7, 40), (40,)), lambda x, w: op.rms_norm(x, w, 1e-5)[0],
         lambda x, w: reference.rms_norm(x, w, 1e-5), strided=True),
    Case("rms_norm, residual, strided", ((2, 5, 40), (40,), (2, 5, 40)),
         lambda x, w, r: op.rms_norm(x, w, 1e-5, r), rms_norm, strided=True),
    Case("layer_norm", ((7, 33), (33,), (33,)), lambda x, w, b: op.layer_norm(x, w, b, 1e-5)[0],
         lambda x, w, b: F.layer_norm(x, (33,), w, b, 1e-5)),
    Case("layer_norm without bias, one position", ((1, 64), (64,)),
         lambda x, w: op.layer_norm(x, w, None, 1e-5)[0], lambda x, w: F.layer_norm(x, (64,), w, None, 1e-5)),
    Case("layer_norm, residual, strided", ((7, 40), (40,), (40,), (7, 40)),
         lambda x, w, b, r: op.layer_norm(x, w, b, 1e-5, r), layer_norm, strided=True),
    Case("rope", HEADS, op.rope, rotate, strided=True, constants=(1, 2)),
    Case("qk_norm and rope", (*HEADS, (12,)), lambda x, c, s, w: op.rope(x, c, s, w, 1e-5),
         lambda x, c, s, w: rotate(reference.rms_norm(x, w, 1e-5), c, s), strided=True, constants=(1, 2)),
    Case("swiglu", ((2, 3, 1030),) * 2, op.gated_activation, reference.swiglu, strided=True),
    Case("geglu", ((3, 40),) * 2, lambda g, u: op.gated_activation(g, u, "gelu"), lambda g, u: F.gelu(g) * u),
    Case("geglu, tanh", ((3, 40),) * 2, lambda g, u: op.gated_activation(g, u, "gelu_tanh"),
         lambda g, u: F.gelu(g, approximate="tanh") * u),
    Case("linear_cross_entropy", ((10, 12), (70, 12)),
         lambda h, w: op.linear_cross_entropy(h, w, TARGETS), cross_entropy),
    Case("linear_cross_entropy, every term", ((10, 12), (70, 12)),
         lambda h, w: op.linear_cross_entropy(h, w, TARGETS, **TERMS),
         lambda h, w: cross_entropy(h, w, **TERMS)),
]  # fmt: skip
