from dataclasses import replace

import pytest
import torch

from distllm.config.schema_model import ModelConfig
from distllm.config.shape import settle_shape
from distllm.models.init import build_model
from distllm.models.recompute import recompute_blocks

SHAPE = settle_shape(
    ModelConfig(hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2), vocab_size=128, seq_len=64
)


def forward_and_backward(mode):
    model = build_model(SHAPE, seed=0)
    recompute_blocks(model, mode)
    tokens = torch.randint(0, 128, (2, 64), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(64).repeat(2, 1)
    segments = (positions >= 20).long()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        loss = model(tokens, positions, segments, tokens)
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return loss, gradients, sum(size for at, size in storages.items() if at not in parameters)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_loss_and_gradients_are_those_without_checkpointing(mode):
    loss, gradients, _ = forward_and_backward("none")
    again, recomputed, _ = forward_and_backward(mode)
    assert torch.equal(loss, again)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, recomputed[name]), name


def test_full_keeps_only_the_inputs_of_blocks():
    _, _, all_kept = forward_and_backward("none")
    _, _, kept = forward_and_backward("full")
    stream = 2 * 64 * 64 * 4
    assert kept < all_kept / 3
    assert kept >= SHAPE.num_layers * stream


def attentions(seen):
    kernels = ("fused_documents", "_scaled_dot_product_flash_attention_for_cpu")
    return sum(seen.get(name, 0) for name in kernels)


def test_selective_keeps_products_and_recomputes_the_rest(monkeypatch):
    """Counted by torch itself: the products of forward are not repeated, norms are."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = {}

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.name().partition("::")[2].partition(".")[0]
            self.seen[name] = self.seen.get(name, 0) + 1
            return function(*args, **(kwargs or {}))

    counts = {}
    for mode in ("none", "selective", "full"):
        with Count() as count:
            forward_and_backward(mode)
        counts[mode] = count.seen
    assert counts["selective"]["mm"] == counts["none"]["mm"]
    # nothing in backward needs the output of a block's last product
    assert counts["full"]["mm"] == counts["none"]["mm"] + 3 * SHAPE.num_layers
    attended = {mode: attentions(seen) for mode, seen in counts.items()}
    assert attended["none"] == attended["selective"] > 0
    assert attended["full"] == attended["none"] + SHAPE.num_layers
    assert counts["selective"]["silu"] == 2 * counts["none"]["silu"]


def test_what_is_drawn_at_random_is_drawn_alike_again():
    shape = replace(SHAPE, dropout=0.5, layer_drop=0.5)
    found = []
    for mode in ("none", "full"):
        model = build_model(shape, seed=0)
        recompute_blocks(model, mode)
        torch.manual_seed(1)
        tokens = torch.arange(64).repeat(2, 1)
        model(tokens, tokens, None, tokens).backward()
        found.append([weight.grad for weight in model.parameters()])
    for plain, recomputed in zip(*found, strict=True):
        assert torch.equal(plain, recomputed)


def test_evaluation_is_left_alone():
    model = build_model(SHAPE, seed=0)
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    plain = model(tokens, tokens)
    recompute_blocks(model, "full")
    with torch.no_grad():
        assert torch.equal(plain, model(tokens, tokens))
