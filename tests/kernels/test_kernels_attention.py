"""The attention kernels against the oracle: every feature, odd shapes, low precision, any program order."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interp.attention_cases import DOCUMENTS, EXACT_CASES, LOW_CASES, Case, draw, errors, oracle, ours

from distllm.kernels.attention import launch, tiles
from distllm.kernels.attention.op import attention

FP32_ERROR = 2e-5
LOW_PRECISION_RATIO = 2.0


def check_exact(case, seed=0, order=None):
    problem = draw(case, seed)
    found = errors(ours(case, problem, order), oracle(case, problem))
    assert max(found.values()) <= FP32_ERROR, found


@pytest.mark.parametrize("case", EXACT_CASES, ids=str)
def test_fp32_is_exact(case):
    check_exact(case, order=7)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", LOW_CASES, ids=str)
def test_low_precision_errs_at_most_twice_as_much_as_eager(case, dtype):
    case = Case(**{**case.__dict__, "dtype": dtype})
    problem = draw(case)
    exact = oracle(case, problem)
    found = errors(ours(case, problem), exact)
    eager = errors(oracle(case, problem, getattr(torch, dtype)), exact)
    above = {
        name: (found[name], eager[name]) for name in found if found[name] > LOW_PRECISION_RATIO * eager[name]
    }
    assert not above, f"ours, eager: {above}"
    assert found["lse"] <= FP32_ERROR  # computed in fp32 from the rounded inputs


lengths = st.integers(0, 80)
drawn_cases = st.builds(
    Case,
    batch=st.integers(1, 2),
    queries=lengths,
    keys=lengths,
    heads=st.just(2),
    key_heads=st.sampled_from([1, 2]),
    head_dim=st.sampled_from([16, 20]),
    sinks=st.booleans(),
    slopes=st.booleans(),
    strided=st.booleans(),
    features=st.fixed_dictionaries(
        {
            "causal": st.booleans(),
            "window": st.sampled_from([0, 1, 5, 40, 200]),
            "softcap": st.sampled_from([0.0, 3.0]),
        }
    ),
)
drawn_documents = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=4)
relaxed = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@relaxed
@given(case=drawn_cases, seed=st.integers(0, 1000))
def test_any_shape_and_any_features(case, seed):
    check_exact(case, seed, order=seed)


@relaxed
@given(case=drawn_cases, documents=drawn_documents, seed=st.integers(0, 1000))
def test_any_documents(case, documents, seed):
    case = Case(**{**case.__dict__, "batch": 1, "documents": tuple(documents)})
    check_exact(case, seed, order=seed)


def test_the_order_of_programs_changes_no_bit():
    case = Case(
        documents=DOCUMENTS, heads=4, key_heads=2, sinks=True, dtype="bfloat16", features={"window": 30}
    )
    problem = draw(case)
    first, *others = [ours(case, problem, order) for order in (None, 1, 2)]
    assert all(torch.equal(x, y) for other in others for x, y in zip(first, other, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tiles_that_are_streamed_are_the_tiles_that_are_pointed_at(monkeypatch, dtype):
    case = Case(documents=((50, 50), (0, 0), (7, 60)), heads=4, key_heads=2, head_dim=32, dtype=dtype)
    problem, described = draw(case), []
    stock = launch.streamed
    monkeypatch.setattr(launch, "streamed", lambda *given: described.append(stock(*given)) or described[-1])
    streamed = ours(case, problem, order=1)
    monkeypatch.setattr(tiles, "UNCOMPILED", tiles.Tile(32, 16, 1, 1))
    pointed = ours(case, problem, order=1)
    assert [keys is not None for keys, _ in described] == [True, True, False, False]
    assert all(torch.equal(x, y) for x, y in zip(streamed, pointed, strict=True))


def test_what_no_descriptor_fits_is_pointed_at():
    x = torch.zeros(2, 20, 3, 16)
    wide = torch.zeros(2, 20, 3, 32)[..., :16]
    fused = torch.zeros(2, 20, 9, 16)[:, :, 3:6]
    cut = torch.zeros(1 + x.numel())[1:].view(x.shape)
    assert launch._describe(x, 16).block_shape == [1, 16, 16]
    assert launch._describe(fused, 16).strides == [20 * 9 * 16, 9 * 16, 1]
    assert launch._describe(wide[:, :, :1], 16).shape == [2, 20, 16]
    odd = (
        wide,
        cut,
        x[..., :12],
        x.half()[..., :4],
        x[:1].expand(2, -1, -1, -1),
        x[:, :0],
        x[:, :1].expand(x.shape),
    )
    assert [launch._describe(one, 16) for one in odd] == [None] * len(odd)


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_documents_do_not_see_each_other():
    """Not even what is no number: a product with zero would not hide it."""
    case = Case(documents=((30, 30), (34, 34)), heads=1)
    before = ours(case, draw(case))
    for poisoned, spared in ((slice(0, 30), slice(30, 64)), (slice(30, 64), slice(0, 30))):
        problem = draw(case)
        for tensor in (problem.q, problem.k, problem.v, problem.grad):
            tensor[:, poisoned] = torch.nan
        after = ours(case, problem)
        for place in (0, 2, 3, 4):  # the output and the gradients of q, k and v
            assert torch.equal(before[place][:, spared], after[place][:, spared])
        assert after[0][:, poisoned].isnan().all()


def test_parts_of_the_keys_merge_by_their_log_sum_exps():
    """What context parallelism does: attend to two halves of the keys apart, then merge."""
    problem = draw(Case(queries=20, keys=64, features={"causal": False}))
    inputs = [x.detach().requires_grad_() for x in (problem.q, problem.k, problem.v)]
    q, k, v = inputs
    parts = [(k[:, part].contiguous(), v[:, part].contiguous()) for part in (slice(0, 40), slice(40, 64))]
    halves = [attention(q, *part, causal=False) for part in parts]
    lse = torch.logaddexp(halves[0][1], halves[1][1])
    merged = sum(out * (part_lse - lse).exp().transpose(1, 2)[..., None] for out, part_lse in halves)
    whole, whole_lse = attention(q, k, v, causal=False)
    torch.testing.assert_close(merged, whole)
    torch.testing.assert_close(lse, whole_lse)
    grads = [torch.autograd.grad((x * problem.grad).sum(), inputs) for x in (merged, whole)]
    for of_merged, of_whole in zip(*grads, strict=True):
        torch.testing.assert_close(of_merged, of_whole, atol=2e-5, rtol=1e-4)
