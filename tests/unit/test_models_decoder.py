import math

import pytest
import torch
import torch._dynamo

from distllm.config.schema import ModelConfig
from distllm.config.shape import settle_shape
from distllm.kernels import reference
from distllm.models.init import build_model
from distllm.models.stack import compile_blocks

LENGTH = 24


def make(seed=0, **changes):
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "init_std": 0.1}
    return build_model(settle_shape(ModelConfig(**{**sizes, **changes}), 60, LENGTH), seed)


def batch(borders=((), (5,), (1, 20)), seed=0):
    tokens = torch.randint(60, (len(borders), LENGTH + 1), generator=torch.Generator().manual_seed(seed))
    opens = torch.zeros(len(borders), LENGTH, dtype=torch.int64)
    for row, places in enumerate(borders):
        opens[row, list(places)] = 1
    places = torch.arange(LENGTH).expand_as(opens)
    positions = places - torch.where(opens.bool(), places, 0).cummax(1).values
    return tokens[:, :-1].clone(), positions, opens.cumsum(1), tokens[:, 1:].clone()


def definition(model, tokens, positions, segments, targets):
    """The decoder written with the oracles, from the same weights, in fp64."""
    shape = model.shape
    w = {name: weight.double() for name, weight in model.state_dict().items()}
    x = w["embed_tokens.weight"][tokens]
    for i in range(shape.num_layers):
        part = f"decoder.layers.{i}."
        h = reference.rms_norm(x, w[part + "input_layernorm.weight"], shape.norm_eps)
        heads = (h @ w[part + "self_attn.qkv_proj.weight"].T).unflatten(-1, (-1, shape.head_dim))
        q, k, v = heads.split([shape.num_heads, shape.num_kv_heads, shape.num_kv_heads], 2)
        q, k = (reference.rope(y, positions, shape.rope_theta) for y in (q, k))
        attended = reference.attention(q, k, v, segments).flatten(2)
        x = x + attended @ w[part + "self_attn.o_proj.weight"].T
        h = reference.rms_norm(x, w[part + "post_attention_layernorm.weight"], shape.norm_eps)
        gate, up = (h @ w[part + "mlp.gate_up_proj.weight"].T).chunk(2, -1)
        x = x + reference.swiglu(gate, up) @ w[part + "mlp.down_proj.weight"].T
    x = reference.rms_norm(x, w["decoder.norm.weight"], shape.norm_eps).flatten(0, 1)
    head = w["lm_head.weight"]
    loss = reference.linear_cross_entropy(x, head, targets.flatten())
    return (x @ head.T).unflatten(0, tokens.shape), loss


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_logits_and_loss_are_those_of_the_definition(tie, kv_heads):
    model = make(tie_embeddings=tie, num_kv_heads=kv_heads)
    tokens, positions, segments, targets = batch()
    targets[0, 3] = -100
    with torch.no_grad():
        logits, loss = definition(model, tokens, positions, segments, targets)
        torch.testing.assert_close(model(tokens, positions, segments).double(), logits, rtol=0, atol=1e-4)
        summed = model(tokens, positions, segments, targets)
    assert summed.dtype == torch.float32
    torch.testing.assert_close(summed.double(), loss, rtol=1e-5, atol=0)


def test_a_document_never_feels_another_in_any_bit():
    model = make()
    tokens, positions, segments, _ = batch()
    with torch.no_grad():
        before = model(tokens, positions, segments)
        changed = segments == 1
        tokens = torch.where(changed, (tokens + 1) % 60, tokens)
        after = model(tokens, positions, segments)
    assert torch.equal(before[~changed], after[~changed])
    assert not torch.equal(before[changed], after[changed])


def test_a_document_reads_the_same_wherever_it_stands():
    model = make()
    tokens, positions, segments, _ = batch([(9,)])
    alone = tokens[:, 9:]
    with torch.no_grad():
        packed = model(tokens, positions, segments)[:, 9:]
        torch.testing.assert_close(model(alone, torch.arange(LENGTH - 9)[None]), packed, rtol=0, atol=1e-5)


def test_the_future_is_not_seen():
    model = make()
    tokens, positions, _, _ = batch()
    with torch.no_grad():
        before = model(tokens, positions)
        tokens[:, 10] = (tokens[:, 10] + 1) % 60
        after = model(tokens, positions)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.equal(before[:, 10:], after[:, 10:])


def test_parameters_are_as_counted_and_a_tied_one_comes_once():
    for tie in (True, False):
        model = make(tie_embeddings=tie)
        assert sum(weight.numel() for weight in model.parameters()) == model.shape.num_params
        assert (model.lm_head.weight is model.embed_tokens.weight) == tie
        assert ("lm_head.weight" in dict(model.named_parameters())) != tie


def test_weights_depend_on_seed_and_name_only():
    narrow, deep = make(num_layers=1).state_dict(), make(num_layers=3).state_dict()
    for name, weight in narrow.items():
        scale = math.sqrt(3) if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
        torch.testing.assert_close(deep[name] * scale, weight)
    assert not torch.equal(
        deep["decoder.layers.0.mlp.down_proj.weight"], deep["decoder.layers.1.mlp.down_proj.weight"]
    )
    other = make(seed=1).state_dict()
    same = make().state_dict()
    for name, weight in make().state_dict().items():
        assert torch.equal(weight, same[name])
        assert torch.equal(weight, other[name]) == (weight.ndim == 1)


def test_weights_have_the_intended_scale():
    model = make(hidden_size=128, num_layers=8, init_std=0.05)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            assert torch.equal(weight, torch.ones_like(weight))
            continue
        residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        assert weight.std().item() == pytest.approx(0.05 / 4 if residual else 0.05, rel=0.05), name


def test_drawing_weights_leaves_the_global_stream_alone():
    state = torch.get_rng_state()
    make()
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.slow
def test_one_graph_serves_all_blocks_and_all_borders(monkeypatch):
    plain, compiled = make(num_layers=3), make(num_layers=3)
    graphs = []

    def backend(graph, examples):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, examples)

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend=backend, **options))
    torch._dynamo.reset()
    compile_blocks(compiled)
    for borders in (((), (5,), (1, 20)), ((), (), ()), ((1, 2, 3), (4,), (23,))):
        for model in (plain, compiled):
            model.zero_grad()
            model(*batch(borders)).backward()
        for mine, should in zip(compiled.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, should.grad)
    assert len(graphs) == 1
