"""A model trained by distllm's own task and operations: with the kernels it has the losses it has without."""

import pytest
import torch
from interp.sanitizer import Sanitizer

from distllm.config.attention import AttentionSpec
from distllm.config.schema import ModelConfig
from distllm.config.shape import settle_shape
from distllm.errors import ConfigError
from distllm.kernels.attention import launch
from distllm.models.init import build_model
from distllm.ops import backend, cross_entropy, mlp, norm, rope
from distllm.ops.attention import CAUSAL, Pattern, attend, plan_attention
from distllm.ops.relative import alibi_slopes

CPU = torch.device("cpu")
STEPS = 20
ROWS, LENGTH, HEADS, KEY_HEADS, WIDTH, VOCABULARY = 1, 20, 2, 1, 16, 33
SEGMENTS = torch.tensor([[0] * 8 + [1] * 12], dtype=torch.int32)


@pytest.fixture
def triton_kernels():
    yield backend.use_kernels("triton", CPU)
    backend.use_kernels("torch", CPU)


class Layer(torch.nn.Module):
    """A block in the words of `distllm.ops`: every operation that has a kernel takes part."""

    def __init__(self, pattern, slopes=None):
        super().__init__()
        self.slopes = slopes
        channels = HEADS * WIDTH
        self.pattern = pattern
        self.norms = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(channels)) for _ in range(2)])
        self.qkv = torch.nn.Linear(channels, (HEADS + 2 * KEY_HEADS) * WIDTH, bias=False)
        self.out = torch.nn.Linear(channels, channels, bias=False)
        self.up = torch.nn.Linear(channels, 2 * 24, bias=False)
        self.down = torch.nn.Linear(24, channels, bias=False)

    def forward(self, x, plan, rotation):
        heads = self.qkv(norm.rms_norm(x, self.norms[0], 1e-5)).unflatten(-1, (-1, WIDTH))
        q, k, v = heads.split([HEADS, KEY_HEADS, KEY_HEADS], dim=2)
        q, k = rope.rotate(q, rotation), rope.rotate(k, rotation)
        x = x + self.out(attend(q, k, v, plan, self.pattern, slopes_H=self.slopes).flatten(2))
        gate, up = self.up(norm.rms_norm(x, self.norms[1], 1e-5)).chunk(2, dim=-1)
        return x + self.down(mlp.gated(gate, up, "silu"))


def train():
    """Return the losses of STEPS steps of AdamW on one batch of packed documents."""
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(VOCABULARY, HEADS * WIDTH)
    torch.nn.init.normal_(embedding.weight, std=0.2)
    layers = torch.nn.ModuleList(
        [Layer(CAUSAL, alibi_slopes(HEADS, CPU)), Layer(Pattern(window=7, softcap=20.0))]
    )
    parameters = [*embedding.parameters(), *layers.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    tokens = torch.randint(0, VOCABULARY, (ROWS, LENGTH + 1))
    tokens[0, 3] = -100
    positions = torch.arange(LENGTH)[None]
    terms = cross_entropy.LossTerms(label_smoothing=0.05, z_loss=1e-3)
    losses = []
    for _ in range(STEPS):
        plan = plan_attention(SEGMENTS, CPU)
        x = embedding(tokens[:, :-1].clamp(min=0))
        rotation = rope.rotation(positions, WIDTH, 1e4, torch.float32)
        for layer in layers:
            x = layer(x, plan, rotation)
        targets = tokens[:, 1:].flatten()
        loss = cross_entropy.linear_cross_entropy(
            x.flatten(0, 1), embedding.weight, targets, softcap=30.0, terms=terms
        )
        loss = loss / (targets != -100).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.timeout(1200)
def test_twenty_steps_with_the_kernels_lose_what_they_lose_without():
    backend.use_kernels("torch", CPU)
    expected = train()
    backend.use_kernels("triton", CPU)
    try:
        with Sanitizer() as watched:
            found = train()
    finally:
        backend.use_kernels("torch", CPU)
    # forward and backward of a step: 2 layers x (5 attention, 4 norm, 4 rope, 2 gated), and the head's chunks
    assert watched.launches >= STEPS * 30
    assert expected[-1] < expected[0] - 0.5
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 1e-5


def test_the_choice_says_why(triton_kernels):
    assert triton_kernels.name == "triton"
    assert "TRITON_INTERPRET" in triton_kernels.reason
    assert backend.serve("cpu", torch.float32, WIDTH, "documents", "grouped", "window", "softcap") == "triton"


def test_a_model_with_alibi_takes_the_kernels():
    config = ModelConfig(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, positions="alibi")
    model = build_model(settle_shape(config, VOCABULARY, LENGTH), seed=0)
    tokens, places = torch.arange(LENGTH)[None] % VOCABULARY, torch.arange(LENGTH)[None]
    asked = AttentionSpec("cpu", "fp32", 64, frozenset({"documents", "grouped", "alibi"}))
    found = {}
    for kernels in ("torch", "triton"):
        chosen = backend.use_kernels(kernels, CPU, [asked]).attention[asked].name
        loss = model(tokens, places, SEGMENTS, tokens.roll(-1, 1))
        found[chosen] = [loss, *torch.autograd.grad(loss, list(model.parameters()))]
    backend.use_kernels("torch", CPU)
    assert list(found) == ["documents", "triton"]
    for ours, theirs in zip(found["triton"], found["documents"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_a_bias_by_distance_is_refused_not_dropped(triton_kernels):
    q, k = torch.randn(1, 4, 2, 16), torch.randn(1, 4, 1, 16)
    with pytest.raises(ConfigError, match="does not support a bias by distance"):
        attend(q, k, k, plan_attention(None, CPU), CAUSAL, torch.zeros(2, 7))
    with pytest.raises(ConfigError, match="a window over another sequence"):
        attend(q[:, :2], k, k, plan_attention(None, CPU), Pattern(causal=False, window=2))


def test_attention_to_another_sequence_keeps_its_mask(triton_kernels):
    plan = plan_attention(SEGMENTS, CPU, SEGMENTS[:, :12])
    assert plan.visible_B1TS.shape == (ROWS, 1, LENGTH, 12)


def test_torch_is_the_choice_without_the_key(monkeypatch):
    assert backend.use_kernels("torch", CPU).name == "torch"
    monkeypatch.setattr(launch, "launch_forward", None)
    q, k = torch.randn(1, 4, 2, 16), torch.randn(1, 4, 1, 16)
    assert attend(q, k, k, plan_attention(None, CPU)).shape == q.shape
    assert backend.serve("cpu", torch.float32, 16) == "sdpa"


def test_a_cpu_without_the_interpreter_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ConfigError, match="needs a CUDA device, and this rank has cpu"):
        backend.use_kernels("triton", CPU)
    assert not backend.triton_chosen()
