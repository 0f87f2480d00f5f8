"""The whole model on a GPU against the same model on the CPU in fp32."""

import pytest

pytestmark = pytest.mark.gpu

ROWS, LENGTH = 2, 64


def make_shape():
    from distllm.config.schema import ModelConfig
    from distllm.config.shape import settle_shape

    return settle_shape(ModelConfig(hidden_size=128, num_layers=2, num_heads=4, num_kv_heads=2), 500, LENGTH)


def batch():
    import torch

    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 500, (ROWS, LENGTH + 1), generator=generator)
    segments = (torch.arange(LENGTH) >= 23).long().repeat(ROWS, 1)
    positions = torch.arange(LENGTH) - 23 * segments
    targets = tokens[:, 1:].clone()
    targets[:, :5] = -100
    return tokens[:, :-1], positions, segments, targets


def loss_and_gradients(device, dtype):
    from distllm.models.init import build_model

    model = build_model(make_shape(), seed=0).to(device=device, dtype=dtype)
    loss = model(*(x.to(device) for x in batch()))
    loss.backward()
    return loss.item(), {name: p.grad.float().cpu() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 5e-2)])
def test_loss_and_gradients_match_the_cpu(dtype, tolerance):
    import torch

    expected_loss, expected = loss_and_gradients("cpu", torch.float32)
    loss, found = loss_and_gradients("cuda", getattr(torch, dtype))
    assert loss == pytest.approx(expected_loss, rel=tolerance / 10)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / gradient.norm()
        assert error <= tolerance, f"{name} is off by {error:.1e}"


def test_logits_match_the_cpu():
    import torch

    from distllm.models.init import build_model

    tokens, positions, segments, _ = batch()
    model = build_model(make_shape(), seed=0).eval()
    with torch.no_grad():
        expected = model(tokens, positions, segments)
        found = model.cuda()(tokens.cuda(), positions.cuda(), segments.cuda()).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
