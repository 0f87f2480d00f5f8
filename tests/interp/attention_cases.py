"""Attention in the interpreter beside the fp64 oracle, and the same oracle run eagerly in low precision."""

from dataclasses import dataclass, field

import torch
from interp.sanitizer import Sanitizer

from distllm.kernels.attention import reference
from distllm.kernels.attention.op import Packed, attention

NAMES = ("out", "lse", "dq", "dk", "dv", "dsinks")


@dataclass(frozen=True)
class Case:
    """One problem: sizes, features, dtype; ``documents`` are (queries, keys) of packed documents."""

    batch: int = 1
    queries: int = 70
    keys: int = 70
    heads: int = 2
    key_heads: int = 1
    head_dim: int = 16
    dtype: str = "float32"
    documents: tuple[tuple[int, int], ...] = ()
    sinks: bool = False
    slopes: bool = False
    strided: bool = False
    features: dict = field(default_factory=dict)

    def __str__(self):
        size = f"{self.heads}:{self.key_heads}x{self.queries}x{self.keys}x{self.head_dim}"
        parts = [self.dtype, size, *(f"{name} {value}" for name, value in self.features.items())]
        parts += [name for name in ("sinks", "slopes", "strided") if getattr(self, name)]
        return ", ".join([*parts, *(["packed"] if self.documents else [])])


@dataclass
class Problem:
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    sinks: torch.Tensor | None
    slopes: torch.Tensor | None
    borders: tuple[torch.Tensor, torch.Tensor] | None
    grad: torch.Tensor
    grad_lse: torch.Tensor


def draw(case, seed=0):
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, case.dtype)
    queries, keys, borders = case.queries, case.keys, None
    if case.documents:
        ends = torch.tensor([[0, 0], *case.documents], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        queries, keys = ends[-1].tolist()
        borders = ends[:, 0].contiguous(), ends[:, 1].contiguous()

    def tensor(length, heads):
        if not case.strided:
            return torch.randn(case.batch, length, heads, case.head_dim, generator=generator).to(dtype)
        # heads first in memory, between other values that a wrong stride would read
        wide = torch.randn(case.batch, heads, length, case.head_dim + 8, generator=generator).to(dtype)
        return wide.transpose(1, 2)[..., : case.head_dim]

    return Problem(
        tensor(queries, case.heads), tensor(keys, case.key_heads), tensor(keys, case.key_heads),
        torch.randn(case.heads, generator=generator) if case.sinks else None,
        torch.rand(case.heads, generator=generator) * 0.1 if case.slopes else None,
        borders, tensor(queries, case.heads),
        torch.randn(case.batch, case.heads, queries, generator=generator),
    )  # fmt: skip


def ours(case, problem, order=None):
    """Return (out, lse, dq, dk, dv, dsinks) of the kernels, watched by the sanitizer."""
    inputs = [problem.q, problem.k, problem.v, problem.sinks]
    inputs = [None if x is None else x.detach().requires_grad_() for x in inputs]
    q, k, v, sinks = inputs
    packed = None
    if problem.borders:
        packed = Packed(*problem.borders, q.shape[1], k.shape[1])
    with Sanitizer(order=order):
        out, lse = attention(q, k, v, sinks_H=sinks, slopes_H=problem.slopes, packed=packed, **case.features)
        live = lse.isfinite()
        loss = (out * problem.grad).sum().to(lse.dtype) + (lse.where(live, 0) * problem.grad_lse).sum()
        grads = torch.autograd.grad(loss, [x for x in inputs if x is not None])
    return [x.detach() for x in (out, lse, *grads)]


def oracle(case, problem, dtype=torch.float64):
    """Return what `ours` returns, by definition, in ``dtype``."""
    inputs = [problem.q, problem.k, problem.v, problem.sinks]
    inputs = [None if x is None else x.detach().to(dtype).requires_grad_() for x in inputs]
    q, k, v, sinks = inputs
    features = {"sinks_H": sinks, "slopes_H": problem.slopes, **case.features}
    if problem.borders:
        out, lse = reference.packed_attention(q, k, v, *problem.borders, **features)
    else:
        out, lse = reference.attention(q, k, v, **features)
    live = lse.isfinite()
    loss = (out * problem.grad.to(dtype)).sum() + (lse.where(live, 0) * problem.grad_lse.to(dtype)).sum()
    grads = torch.autograd.grad(loss, [x for x in inputs if x is not None])
    return [x.detach() for x in (out, lse, *grads)]


def errors(found, exact):
    """Return the largest absolute differences by name; infinities must agree exactly."""
    result = {}
    for name, is_, should in zip(NAMES, found, exact, strict=False):
        assert is_.shape == should.shape, name
        finite = should.isfinite()
        assert torch.equal(is_.isfinite(), finite), f"{name}: not finite where it should be, or the reverse"
        assert torch.equal(is_[~finite].double(), should[~finite]), name
        difference = (is_.double() - should).where(finite, 0).abs()
        result[name] = difference.max().item() if difference.numel() else 0.0
    return result


DOCUMENTS = ((33, 33), (0, 0), (1, 1), (40, 40))
CROSS_DOCUMENTS = ((20, 37), (5, 0), (0, 9), (35, 18))

EXACT_CASES = [
    Case(batch=2, heads=4, key_heads=2),
    Case(queries=50, keys=90, heads=4, key_heads=1, features={"causal": False}),
    Case(queries=90, keys=50),
    Case(queries=33, keys=97, head_dim=24, strided=True, batch=2),
    Case(queries=90, keys=90, features={"window": 20, "softcap": 5.0}),
    Case(queries=50, keys=90, slopes=True, features={"causal": False, "window": 17}),
    Case(queries=65, keys=65, features={"window": 1}),
    Case(queries=65, keys=65, features={"window": 1000}),
    Case(
        queries=40,
        keys=64,
        heads=4,
        key_heads=2,
        sinks=True,
        slopes=True,
        strided=True,
        features={"scale": 0.4},
    ),
    Case(queries=64, keys=30, sinks=True, features={"softcap": 2.0}),
    Case(documents=DOCUMENTS),
    Case(documents=DOCUMENTS, sinks=True, slopes=True, strided=True, features={"window": 9, "softcap": 3.0}),
    Case(documents=CROSS_DOCUMENTS, features={"causal": False}),
    Case(documents=CROSS_DOCUMENTS, features={"window": 11}),
    Case(queries=20, keys=33, head_dim=96),
    Case(queries=20, keys=33, head_dim=192, sinks=True),
    Case(queries=20, keys=33, head_dim=256, features={"window": 25}),
]
LOW_CASES = [
    Case(queries=96, keys=96, heads=4, key_heads=2, head_dim=64),
    Case(queries=70, keys=130, heads=4, key_heads=1, head_dim=128, features={"causal": False}),
    Case(queries=100, keys=100, head_dim=64, features={"window": 30, "softcap": 5.0}),
    Case(documents=((50, 50), (0, 0), (46, 46)), head_dim=96, sinks=True, slopes=True),
    Case(queries=64, keys=64, head_dim=256, features={"window": 33}),
    Case(queries=64, keys=64, head_dim=192),
]
