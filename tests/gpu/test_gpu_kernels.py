"""The Triton kernels on the device: parity with their definitions, and their speed beside others'."""

import pytest

pytestmark = pytest.mark.gpu
FEATURES = {
    "causal": {},
    "full": {"causal": False},
    "window": {"window": 300},
    "softcap": {"softcap": 20.0},
    "sinks and slopes": {"sinks_H": 1.0, "slopes_H": 0.05},
}


def gradients(outputs, inputs, upstream):
    import torch

    return [x.double() for x in (outputs, *torch.autograd.grad(outputs, inputs, upstream))]


def worst(found, exact):
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_attention_is_its_definition(dtype, head_dim, features):
    import torch

    from distllm.kernels.attention import reference
    from distllm.kernels.attention.op import attention

    torch.manual_seed(0)
    sizes = ((2, 500, 8, head_dim), (2, 500, 2, head_dim), (2, 500, 2, head_dim))
    chosen = FEATURES[features]
    chosen = {
        name: torch.full((8,), x, device="cuda") if name.endswith("_H") else x for name, x in chosen.items()
    }
    low = [torch.randn(size, device="cuda", dtype=getattr(torch, dtype)).requires_grad_() for size in sizes]
    upstream = torch.randn_like(low[0])
    found = gradients(attention(*low, **chosen)[0], low, upstream)
    double = [x.detach().double().requires_grad_() for x in low]
    exact = reference.attention(*double, **chosen)[0]
    exact = gradients(exact, double, upstream.double())
    eager = [x.detach().requires_grad_() for x in low]
    eager = gradients(reference.attention(*eager, **chosen)[0], eager, upstream)
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


@pytest.mark.timeout(1800)
def test_speed_beside_others_is_written_down():
    """Not a bar: times for `docs/kernels.md` and whoever chooses tiles; what is wrong is not timed."""
    import torch
    from bench import kernel_speed
    from gate import roofline

    setting = kernel_speed.Setting()
    gpu = roofline.gpu_named(torch.cuda.get_device_name())
    rows = kernel_speed.measure(setting, kernel_speed.on_the_device, gpu)
    kernel_speed.write(kernel_speed.RESULTS, rows, setting)
    print("\n".join(kernel_speed.table(rows)))
    ours = [row for row in rows if row["contestant"].startswith("distllm")]
    assert len({row["task"] for row in ours}) == 8
    assert all(row["both_ms"] > row["forward_ms"] > 0 for row in ours)
