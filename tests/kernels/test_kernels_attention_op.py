"""Attention as a torch operator: registration, gradients, compilation, and what it refuses."""

import pytest
import torch
from interp.sanitizer import Sanitizer

from distllm.kernels.attention import tiles
from distllm.kernels.attention.launch import Features, launch_backward, launch_forward
from distllm.kernels.attention.op import Packed, attention, attention_forward


def draw(*size, dtype=torch.float32, grad=False):
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(size, generator=generator).to(dtype).requires_grad_(grad)


def inputs(dtype=torch.float32, *, queries=9, grad=True):
    return [
        draw(1, length, heads, 16, dtype=dtype, grad=grad) for length, heads in ((queries, 2), (9, 1), (9, 1))
    ]


def test_registration_is_complete():
    borders = torch.tensor([0, 4, 9], dtype=torch.int32)
    arguments = (*inputs(), draw(2, grad=True), None, borders, borders, 9, 9, True, 5, 2.0, 0.25)
    found = torch.library.opcheck(attention_forward, arguments)
    assert set(found.values()) == {"SUCCESS"}
    assert len(found) == 4


def test_gradients_are_those_of_finite_differences():
    def everything(q, k, v, sinks):
        return attention(q, k, v, sinks_H=sinks, window=6, softcap=2.0, scale=0.25)

    arguments = (*inputs(torch.float64), draw(2, dtype=torch.float64, grad=True))
    assert torch.autograd.gradcheck(everything, arguments, fast_mode=True)


def test_a_compiled_graph_is_whole_and_computes_the_same():
    def loss(q, k, v):
        out, lse = attention(q, k, v, window=4)
        return (out * out).sum() + lse.sum()

    plain, compiled = inputs(), inputs()
    expected = torch.autograd.grad(loss(*plain), plain)
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*compiled), compiled)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_meta_tensors_have_the_real_shapes_and_dtypes(dtype):
    q, k, v = inputs(dtype, queries=7, grad=False)
    real = attention(q, k, v)
    meta = attention(*(x.to("meta") for x in (q, k, v)))
    described = [[(x.shape, x.dtype, x.stride()) for x in outputs] for outputs in (real, meta)]
    assert described[0] == described[1]


@pytest.mark.parametrize("streams", [True, False])
def test_offsets_beyond_two_to_the_31_are_right(monkeypatch, streams):
    """The second tile of a view starts 2.2e9 elements in: the memory between is reserved, not touched."""
    monkeypatch.setattr(tiles, "UNCOMPILED", tiles.Tile(32, 16, 1, 1, streams))
    row_step = 68_000_000
    storage = torch.UntypedStorage(2 * (39 * row_step + 16))
    q = torch.empty(0, dtype=torch.float16).set_(storage, 0, (1, 40, 1, 16), (0, row_step, 0, 1))
    q.copy_(draw(1, 40, 1, 16, dtype=torch.float16))
    features = Features(40, 40, True, 0, 0.0, 0.25)
    found = []
    for x in (q, q.contiguous()):
        with Sanitizer(races=False):
            outputs = launch_forward(x, x, x, (None, None), None, None, features)
            grads = x, torch.zeros_like(outputs[1])
            found.append([*outputs, *launch_backward(grads, x, x, x, outputs, (None, None), None, features)])
    assert all(torch.equal(far, near) for far, near in zip(*found, strict=True))


def packed(query_borders, key_borders, longest=9):
    borders = [torch.tensor(ends, dtype=torch.int32) for ends in (query_borders, key_borders)]
    return Packed(*borders, longest, longest)


def far_rows():
    return torch.empty(0).set_(torch.UntypedStorage(2**30), 0, (1, 2, 1, 16), (0, 20_000_000, 0, 1))


q, k, v = inputs(grad=False)
REFUSED = {
    "q is torch.int32": lambda: attention(q.int(), k, v),
    "k is torch.float16, but q is torch.float32": lambda: attention(q, k.half(), v.half()),
    "k is on meta, but q is on cpu": lambda: attention_forward._init_fn(
        q, k.to("meta"), v, None, None, None, None, 9, 9, True, 0, 0.0, 1.0
    ),
    r"q has the shape \(9, 2, 16\)": lambda: attention_forward._init_fn(
        q[0], k[0], v[0], None, None, None, None, 9, 9, True, 0, 0.0, 1.0
    ),
    "the head size is 8": lambda: attention(q[..., :8].contiguous(), k[..., :8], v[..., :8]),
    "the last axis of q has the stride 2": lambda: attention(draw(1, 9, 2, 32)[..., ::2], k, v),
    "3 query heads cannot share 2": lambda: attention(draw(1, 9, 3, 16), *(draw(1, 9, 2, 16),) * 2),
    "the rows of k are 20000000 elements apart": lambda: attention(q, *(far_rows(),) * 2),
    r"v has the shape \(1, 8, 1, 16\)": lambda: attention(q, k, v[:, :8]),
    "window is -1": lambda: attention(q, k, v, window=-1),
    "softcap is -2.0": lambda: attention(q, k, v, softcap=-2.0),
    r"sinks has the shape \(3,\)": lambda: attention(q, k, v, sinks_H=draw(3)),
    r"slopes has the shape \(1,\)": lambda: attention(q, k, v, slopes_H=draw(1)),
    "query_borders decreases": lambda: attention(q, k, v, packed=packed([0, 5, 4, 9], [0, 5, 5, 9])),
    "key_borders runs from 0 to 8": lambda: attention(q, k, v, packed=packed([0, 9], [0, 8])),
    "query_borders runs from 1 to 9": lambda: attention(q, k, v, packed=packed([1, 9], [0, 9])),
    "must name the same documents": lambda: attention(q, k, v, packed=packed([0, 4, 9], [0, 9])),
    "a document of 9, above the stated 5": lambda: attention(q, k, v, packed=packed([0, 9], [0, 9], 5)),
    "packed documents are one row": lambda: attention(
        *(draw(2, 9, 1, 16) for _ in range(3)), packed=packed([0, 9], [0, 9])
    ),
    "must be a 1-dimensional int32": lambda: attention(
        q, k, v, packed=Packed(torch.tensor([0, 9]), torch.tensor([0, 9]), 9, 9)
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused_by_name(message):
    with pytest.raises(ValueError, match=f"attention: .*{message}"):
        REFUSED[message]()
