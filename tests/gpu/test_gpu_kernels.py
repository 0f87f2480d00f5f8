"""The Triton kernels on the device: parity with their definitions, and their speed beside torch's."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu
RESULTS = Path("kernel_speed.json")
FEATURES = {
    "causal": {},
    "full": {"causal": False},
    "window": {"window": 300},
    "softcap": {"softcap": 20.0},
}


def gradients(outputs, inputs, upstream):
    import torch

    return [x.double() for x in (outputs, *torch.autograd.grad(outputs, inputs, upstream))]


def worst(found, exact):
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_attention_is_its_definition(dtype, head_dim, features):
    import torch

    from distllm.kernels.attention import reference
    from distllm.kernels.attention.op import attention

    torch.manual_seed(0)
    sizes = ((2, 500, 8, head_dim), (2, 500, 2, head_dim), (2, 500, 2, head_dim))
    low = [torch.randn(size, device="cuda", dtype=getattr(torch, dtype)).requires_grad_() for size in sizes]
    upstream = torch.randn_like(low[0])
    found = gradients(attention(*low, **FEATURES[features])[0], low, upstream)
    double = [x.detach().double().requires_grad_() for x in low]
    exact = reference.attention(*double, **FEATURES[features])[0]
    exact = gradients(exact, double, upstream.double())
    eager = [x.detach().requires_grad_() for x in low]
    eager = gradients(reference.attention(*eager, **FEATURES[features])[0], eager, upstream)
    assert worst(found, exact) <= max(2 * worst(eager, exact), 2e-5)


def test_packed_documents_are_attended_to_on_their_own_and_runs_agree_in_every_bit():
    import torch

    from distllm.kernels.attention.op import Packed, attention

    torch.manual_seed(0)
    borders = torch.tensor([0, 100, 100, 700, 1024], dtype=torch.int32, device="cuda")
    q, k, v = (torch.randn(1, 1024, 8, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    packed = Packed(borders, borders, 1024, 1024)
    first, second = (attention(q, k, v, packed=packed)[0] for _ in range(2))
    assert torch.equal(first, second)
    alone = attention(*(x[:, 100:700].contiguous() for x in (q, k, v)))[0]
    torch.testing.assert_close(first[:, 100:700], alone, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_pointwise_kernels_are_their_definitions(dtype):
    import torch

    from distllm.kernels import reference
    from distllm.kernels.pointwise import op

    torch.manual_seed(0)
    dtype = getattr(torch, dtype)
    x, up = (torch.randn(64, 1000, device="cuda", dtype=dtype).requires_grad_() for _ in range(2))
    weight = torch.randn(1000, device="cuda", dtype=dtype).requires_grad_()
    pairs = [
        (lambda x, w: op.rms_norm(x, w, 1e-5)[0], lambda x, w: reference.rms_norm(x, w, 1e-5), (x, weight)),
        (op.gated_activation, reference.swiglu, (x, up)),
    ]
    for ours, definition, inputs in pairs:
        upstream = torch.randn_like(x)
        found = gradients(ours(*inputs), inputs, upstream)
        double = [x.detach().double().requires_grad_() for x in inputs]
        exact = gradients(definition(*double), double, upstream.double())
        eager = gradients(definition(*inputs), inputs, upstream)
        assert worst(found, exact) <= max(2 * worst(eager, exact), 2e-5)


def milliseconds(function, inputs):
    """Return the times of the forward and of the backward pass."""
    import torch
    from triton.testing import do_bench

    out = function(*inputs)
    upstream = torch.randn_like(out)
    forward = do_bench(lambda: function(*inputs))
    return forward, do_bench(lambda: torch.autograd.grad(out, inputs, upstream, retain_graph=True))


def test_speed_beside_torch_is_written_down():
    """Not a bar: seconds of forward and backward, for `docs/kernels.md` and whoever chooses tiles."""
    import torch
    import torch.nn.functional as F
    from gate import roofline

    from distllm.kernels.attention.op import attention

    def triton(q, k, v):
        return attention(q, k, v)[0]

    def sdpa(q, k, v):
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=True).transpose(1, 2)

    rows = []
    for head_dim in (64, 128):
        inputs = [
            torch.randn(2, 4096, heads, head_dim, device="cuda", dtype=torch.bfloat16).requires_grad_()
            for heads in (16, 4, 4)
        ]
        for function in (triton, sdpa):
            forward, backward = milliseconds(function, inputs)
            flops = 4 * 2 * 16 * 4096 * 4096 * head_dim / 2  # half of the scores are visible
            row = {"kernel": function.__name__, "head_dim": head_dim}
            row |= {"forward_ms": forward, "backward_ms": backward, "forward_tflops": flops / forward / 1e9}
            gpu = roofline.gpu_named(torch.cuda.get_device_name())
            if gpu is not None and function is triton:
                times = roofline.attention_times(gpu, head_dim, 4096, 16, 2)
                predicted = times.pop("forward_kernel")
                row["predicted_forward_ms"] = [1e3 * predicted.overlapped, 1e3 * predicted.serial]
                row["predicted_backward_ms"] = [
                    1e3 * sum(getattr(time, bound) for time in times.values())
                    for bound in ("overlapped", "serial")
                ]
            rows.append(row)
    device = torch.cuda.get_device_name()
    RESULTS.write_text(json.dumps({"device": device, "torch": torch.__version__, "rows": rows}, indent=1))
    assert all(row["forward_ms"] > 0 and row["backward_ms"] > 0 for row in rows)
