import pytest
import torch

from distllm.kernels import reference
from distllm.ops.attention import attend, attend_cached, cached_mask, plan_attention

CPU = torch.device("cpu")
ROWS, LENGTH = 3, 20


def draw(*size, dtype=torch.float64, seed=0):
    return torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def heads(kv_heads, dtype=torch.float64):
    sizes = ((4, 1), (kv_heads, 2), (kv_heads, 3))
    return [draw(ROWS, LENGTH, n, 8, dtype=dtype, seed=s).requires_grad_() for n, s in sizes]


SEGMENTS = {
    "none given": None,
    "no border": torch.zeros(ROWS, LENGTH, dtype=torch.int32),
    "borders": torch.tensor([[0] * 20, [0] * 7 + [1] * 13, [0] + [1] * 9 + [2] * 9 + [3]], dtype=torch.int32),
    "each alone": torch.arange(LENGTH, dtype=torch.int32).expand(ROWS, LENGTH),
}


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS.keys())
def test_output_and_gradients_are_those_of_the_definition(segments, kv_heads):
    qkv = heads(kv_heads)
    out = attend(*qkv, plan_attention(segments, CPU))
    expected = reference.attention(*qkv, segments)
    along = draw(ROWS, LENGTH, 4, 8, seed=9)
    torch.testing.assert_close(out, expected)
    found = torch.autograd.grad(out, qkv, along)
    for gradient, should in zip(found, torch.autograd.grad(expected, qkv, along), strict=True):
        torch.testing.assert_close(gradient, should)


def test_masked_attention_of_other_devices_is_that_of_the_definition():
    qkv, segments = heads(2), SEGMENTS["borders"]
    plan = plan_attention(segments, torch.device("meta"))
    assert plan.visible_B1TS is not None
    torch.testing.assert_close(attend(*qkv, plan), reference.attention(*qkv, segments))


def test_strided_inputs_give_the_same():
    packed = draw(ROWS, LENGTH, 8, 8)
    qkv = packed.split([4, 2, 2], dim=2)
    out = attend(*qkv, plan_attention(SEGMENTS["borders"], CPU))
    torch.testing.assert_close(out, reference.attention(*qkv, SEGMENTS["borders"]))


def test_a_document_never_feels_another_in_any_bit():
    segments = SEGMENTS["borders"]
    q, k, v = (x.detach() for x in heads(2, torch.float32))
    plan = plan_attention(segments, CPU)
    before = attend(q, k, v, plan)
    changed = segments == 1
    for x in (q, k, v):
        x[changed] += 100.0
    after = attend(q, k, v, plan)
    assert torch.equal(before[~changed], after[~changed])
    assert not torch.equal(before[changed], after[changed])


def test_bf16_stays_close_to_the_definition():
    qkv = [x.detach() for x in heads(2)]
    out = attend(*(x.bfloat16() for x in qkv), plan_attention(SEGMENTS["borders"], CPU))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(
        out.double(), reference.attention(*qkv, SEGMENTS["borders"]), atol=3e-2, rtol=0
    )


@pytest.mark.parametrize("new", [1, 7, LENGTH])
def test_cached_attention_is_the_end_of_the_whole(new):
    q, k, v = heads(2)
    whole = reference.attention(q, k, v)
    mask = cached_mask(q[:, -new:].flatten(2), LENGTH)
    torch.testing.assert_close(attend_cached(q[:, -new:], k, v, mask=mask), whole[:, -new:])


def test_the_operator_keeps_torch_compile_contract():
    from distllm.ops import document_attention

    qkv = heads(2)
    pieces = plan_attention(SEGMENTS["borders"], CPU).pieces_P4
    torch.library.opcheck(document_attention.fused_documents, (*qkv, pieces, True, 0, 0.3))
