"""What holds for every family and every option of the block."""

import pytest
import torch
import torch.nn.functional as F

from distllm.config.schema_model import ModelConfig, RopeConfig
from distllm.config.shape import settle_shape
from distllm.models.cache import KVCache
from distllm.models.init import build_model
from distllm.models.stack import compile_blocks
from distllm.ops.cross_entropy import LossTerms

VOCAB, LENGTH, SOURCE = 64, 24, 15

STYLES = {
    "llama": {},
    "gpt2": {
        "norm": "layer", "norm_bias": True, "positions": "learned", "activation": "gelu_tanh", "gated": False,
        "attention_bias": True, "attention_out_bias": True, "mlp_bias": True,
    },
    "alibi": {"positions": "alibi", "activation": "relu", "gated": False},
    "windows": {"sliding_window": 4, "window_pattern": "LG", "rope_theta_local": 100.0},
    "gemma": {
        "attention_softcap": 2.0, "logit_softcap": 3.0, "scale_embedding": True, "activation": "gelu_tanh",
        "head_dim": 10, "sliding_window": 6,
    },
    "qwen3": {"qk_norm": "head", "head_dim": 12, "num_kv_heads": 1},
    "olmo2": {"qk_norm": "all", "norm_place": "output", "tie_embeddings": False},
    "llama3": {"rope": RopeConfig("llama3", 8.0, 8)},
    "yarn": {"rope": RopeConfig("yarn", 4.0, 16)},
    "mixtral": {"num_experts": 4, "intermediate_size": 24},
    "no positions": {"positions": "none", "logit_scale": 0.3, "attention_scale": 0.1},
}  # fmt: skip
ENCODERS = {
    "bert": {
        **STYLES["gpt2"], "activation": "gelu", "norm_place": "post", "embed_norm": True, "token_types": 2,
        "num_kv_heads": 4,
    },
    "modernbert": {
        "norm": "layer", "activation": "gelu", "embed_norm": True, "sliding_window": 3,
        "window_pattern": "GL", "num_kv_heads": 4,
    },
    "relative": {"positions": "relative", "relative_buckets": 8, "relative_distance": 16},
}  # fmt: skip
PAIRS = {
    "t5": {
        "positions": "relative", "relative_buckets": 8, "relative_distance": 16, "activation": "relu",
        "gated": False, "attention_scale": 1.0, "num_encoder_layers": 3,
    },
    "transformer": {
        "norm": "layer", "norm_bias": True, "norm_place": "post", "positions": "sinusoidal",
        "activation": "relu", "gated": False, "mlp_bias": True, "scale_embedding": True,
    },
    "rope": {"tie_embeddings": False, "qk_norm": "head", "attention_bias": True},
}  # fmt: skip
EVERY = [
    *(("decoder", name, options) for name, options in STYLES.items()),
    *(("encoder", name, options) for name, options in ENCODERS.items()),
    *(("encoder_decoder", name, options) for name, options in PAIRS.items()),
]
every = pytest.mark.parametrize(
    ("family", "options"), [(f, o) for f, _, o in EVERY], ids=[f"{f}-{n}" for f, n, _ in EVERY]
)


def make(family, options, **more):
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "init_std": 0.2}
    head, terms = more.pop("head", "masked_lm"), more.pop("terms", LossTerms())
    config = ModelConfig(family=family, **{**sizes, **options, **more})
    return build_model(settle_shape(config, VOCAB, LENGTH), seed=0, head=head, terms=terms)


def side(borders, length, seed):
    tokens = torch.randint(VOCAB, (len(borders), length), generator=torch.Generator().manual_seed(seed))
    opens = torch.zeros(len(borders), length, dtype=torch.int64)
    for row, places in enumerate(borders):
        opens[row, list(places)] = 1
    places = torch.arange(length).expand_as(opens)
    return tokens, places - torch.where(opens.bool(), places, 0).cummax(1).values, opens.cumsum(1)


def batch(family):
    target = side([(5, 9), (20,)], LENGTH, 0)
    return (*side([(7, 12), (4,)], SOURCE, 1), *target) if family == "encoder_decoder" else target


def targets():
    return torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(3))


@every
def test_parameters_are_as_counted(family, options):
    model = make(family, options)
    assert sum(weight.numel() for weight in model.parameters()) == model.shape.num_params


def bare_loss(model):
    """Take the loss without what routers add to it."""
    return model.eval() if model.shape.num_experts else model


@every
def test_the_loss_is_the_summed_cross_entropy_of_the_logits(family, options):
    model, wanted = make(family, options), targets()
    wanted[0, :3] = -100
    logits = model(*batch(family))
    loss = bare_loss(model)(*batch(family), wanted)
    expected = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected)


@every
def test_a_document_never_feels_another_in_any_bit(family, options):
    """Neither its tokens nor, of a pair, its source reach the logits of another document."""
    model, inputs = make(family, options), batch(family)
    with torch.no_grad():
        before = model(*inputs)
        for tokens, _, segments in (inputs[:3], inputs[-3:]):
            tokens[segments == 1] = (tokens[segments == 1] + 1) % VOCAB
        after = model(*inputs)
    changed = inputs[-1] == 1
    assert torch.equal(before[~changed], after[~changed])
    assert not torch.equal(before[changed], after[changed])


@every
def test_a_document_reads_the_same_alone(family, options):
    model, inputs = make(family, options), batch(family)
    alone = []
    for tokens, positions, segments in (inputs[:3], inputs[-3:])[-(len(inputs) // 3) :]:
        mine = segments[0] == 1
        alone += [tokens[:1, mine], positions[:1, mine], None]
    with torch.no_grad():
        packed = model(*inputs)[0, inputs[-1][0] == 1]
        torch.testing.assert_close(model(*alone)[0], packed, rtol=0, atol=2e-5)


@every
def test_every_weight_learns_and_a_few_steps_lower_the_loss(family, options):
    model, inputs, wanted = make(family, options, init_std=0.05), batch(family), targets()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(*inputs, wanted)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    untouched = [name for name, weight in model.named_parameters() if not weight.grad.abs().sum() > 0]
    assert not untouched
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_the_future_is_not_seen(family):
    options = PAIRS["t5"] if family == "encoder_decoder" else {}
    model, inputs = make(family, options), batch(family)
    with torch.no_grad():
        before = model(*inputs)
        inputs[-3][1, 10] = (inputs[-3][1, 10] + 1) % VOCAB
        after = model(*inputs)
    assert torch.equal(before[1, :10], after[1, :10])
    assert not torch.equal(before[1, 10:20], after[1, 10:20])


@pytest.mark.parametrize("options", ENCODERS.values(), ids=ENCODERS.keys())
def test_an_encoder_sees_both_ways(options):
    model, (tokens, positions, segments) = make("encoder", options), batch("encoder")
    with torch.no_grad():
        before = model(tokens, positions, segments)
        tokens[1, 19] = (tokens[1, 19] + 1) % VOCAB
        after = model(tokens, positions, segments)
    near = 19 - (options.get("sliding_window") or 19) + 1
    assert not torch.equal(before[1, near], after[1, near])


CACHED = [case for case in EVERY if case[0] != "encoder"]


@pytest.mark.parametrize(
    ("family", "options"), [(f, o) for f, _, o in CACHED], ids=[f"{f}-{n}" for f, n, _ in CACHED]
)
def test_cached_logits_are_those_of_the_whole_text(family, options):
    model = make(family, options)
    tokens, place = targets(), torch.arange(LENGTH).expand(2, LENGTH)
    source = ()
    if family == "encoder_decoder":
        ids, positions, _ = side([(), ()], SOURCE, 1)
        source = (ids, positions, (torch.arange(SOURCE) >= torch.tensor([[15], [9]])).long())
    with torch.no_grad():
        segments = torch.zeros_like(tokens) if source else None
        whole = model(*source, tokens, place, segments)
        for cuts in ([LENGTH], [10, 1, 5, 8], [1, 23]):
            cache = KVCache(model.shape, 2, LENGTH, tokens.device, torch.float32)
            parts = zip(tokens.split(cuts, 1), place.split(cuts, 1), strict=True)
            pieces = [model(*source, ids, where, cache=cache) for ids, where in parts]
            torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_of_unit_length_and_do_not_feel_padding(pooling):
    model = make("encoder", ENCODERS["modernbert"], head="embedding", pooling=pooling)
    tokens, positions, segments = side([(10,), ()], LENGTH, 0)
    with torch.no_grad():
        vectors = model(tokens, positions, segments)
        alone = model(tokens[:1, :10], positions[:1, :10])
        tokens[0, 10:] = 0
        again = model(tokens, positions, segments)
    assert vectors.shape == (2, 32)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(vectors[:1], alone, rtol=0, atol=1e-5)
    assert torch.equal(vectors, again)
    with pytest.raises(ValueError, match="no targets"):
        model(tokens, positions, segments, tokens)


def test_spans_have_two_logits_and_token_types_matter():
    model = make("encoder", ENCODERS["bert"], head="span")
    tokens, positions, segments = batch("encoder")
    with torch.no_grad():
        plain = model(tokens, positions, segments)
        typed = model(tokens, positions, segments, types_BT=(positions > 3).long())
        assert torch.equal(plain, model(tokens, positions, segments, types_BT=torch.zeros_like(tokens)))
    assert plain.shape == (2, LENGTH, 2)
    assert not torch.equal(plain, typed)
    with pytest.raises(ValueError, match="spans"):
        model(tokens, positions, segments, tokens)


def test_dropout_is_drawn_from_the_global_stream_in_training_only():
    for options in ({"dropout": 0.3}, {"layer_drop": 0.5}):
        model, inputs = make("encoder_decoder", PAIRS["t5"], **options), batch("encoder_decoder")
        plain = make("encoder_decoder", PAIRS["t5"])
        with torch.no_grad():
            drawn = []
            for seed in (1, 1, 2):
                torch.manual_seed(seed)
                drawn.append(model(*inputs))
            assert torch.equal(drawn[0], drawn[1])
            assert not torch.equal(drawn[0], drawn[2])
            assert torch.equal(model.eval()(*inputs), plain.eval()(*inputs))


def test_a_skipped_block_leaves_the_row_as_it_was_and_the_mean_stays():
    model = make("decoder", {}, layer_drop=0.5, num_layers=1)
    block = model.decoder.layers[0]
    tokens, positions, _ = side([()] * 400, 4, 0)
    x = model.embed_tokens(tokens, positions)
    contexts = model.decoder._contexts(x, positions, None, None, None)
    with torch.no_grad():
        torch.manual_seed(0)
        drawn = block(x, contexts[0])
        kept = block.eval()(x, contexts[0])
    skipped = (drawn == x).all(dim=2).all(dim=1)
    assert 150 < int(skipped.sum()) < 250
    block.train()
    with torch.no_grad():
        first = x + 2 * block.self_attn(block.input_layernorm(x), contexts[0])
        both = first + 2 * block.mlp(block.post_attention_layernorm(first))
    torch.testing.assert_close(drawn[~skipped], both[~skipped])
    assert not torch.equal(kept[~skipped], drawn[~skipped])


def test_label_smoothing_and_z_loss_count_in_training_only():
    terms = LossTerms(label_smoothing=0.1, z_loss=0.01)
    model, inputs, wanted = make("decoder", {}, terms=terms), batch("decoder"), targets()
    logits = model(*inputs)
    plain = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
    smooth = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum", label_smoothing=0.1)
    expected = smooth + 0.01 * logits.logsumexp(-1).square().sum()
    torch.testing.assert_close(model(*inputs, wanted), expected)
    torch.testing.assert_close(model.eval()(*inputs, wanted), plain)


def test_biases_begin_at_zero_and_post_norm_weights_are_not_scaled_by_depth():
    model = make("encoder", ENCODERS["bert"], hidden_size=128, init_std=0.05)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            assert torch.equal(weight, torch.full_like(weight, 0.0 if name.endswith("bias") else 1.0)), name
        elif weight.numel() > 4000:
            assert weight.std().item() == pytest.approx(0.05, rel=0.05), name
    pairs = make("encoder_decoder", {**PAIRS["t5"], "hidden_size": 128, "num_encoder_layers": 3})
    for stack, writes in (("encoder", 6), ("decoder", 6)):
        weight = pairs.get_parameter(f"{stack}.layers.0.mlp.down_proj.weight")
        assert weight.std().item() == pytest.approx(0.2 * writes**-0.5, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "options"), [("decoder", {}), ("encoder_decoder", PAIRS["t5"])])
def test_compiled_blocks_learn_alike_whatever_the_borders(family, options, monkeypatch):
    plain, compiled = make(family, options), make(family, options)
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **more: real(f, backend="aot_eager", **more))
    torch._dynamo.reset()
    compile_blocks(compiled)
    for model in (plain, compiled):
        model(*batch(family), targets()).backward()
    for mine, should in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, should.grad)


def test_a_model_is_a_pure_function_of_seed_and_head():
    first, second = (make("encoder", ENCODERS["bert"]).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    span = make("encoder", ENCODERS["bert"], head="span").state_dict()
    shared = [name for name in span if not name.startswith("head.")]
    assert all(torch.equal(first[name], span[name]) for name in shared)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("decoder", {}),
        ("encoder", ENCODERS["bert"]),
        ("encoder_decoder", PAIRS["t5"]),
    ],
)
def test_a_tied_projection_is_the_embedding(family, options, tie):
    model = make(family, {**options, "tie_embeddings": tie})
    head = model.head.lm_head if family == "encoder" else model.lm_head
    assert (head.weight is model.embed_tokens.weight) == tie
    assert sum(weight.numel() for weight in model.parameters()) == model.shape.num_params


@pytest.mark.parametrize(
    ("task", "head"),
    [
        ("causal_lm", "masked_lm"),
        ("masked_lm", "masked_lm"),
        ("extractive_qa", "span"),
        ("contrastive", "embedding"),
    ],
)
def test_an_encoder_has_the_head_of_its_task(task, head):
    from distllm.models.heads import head_of

    assert head_of(task) == head
    names = make("encoder", ENCODERS["bert"], head=head).state_dict()
    expected = {
        "masked_lm": {"head.dense.weight", "head.lm_head.bias"},
        "span": {"head.weight", "head.bias"},
        "embedding": set(),
    }
    assert expected[head] <= set(names)
    assert any(name.startswith("head.") for name in names) == bool(expected[head])


def test_segments_of_one_side_only_are_refused():
    model, inputs = make("encoder_decoder", PAIRS["t5"]), batch("encoder_decoder")
    with pytest.raises(ValueError, match="neither"):
        model(*inputs[:2], None, *inputs[3:])
    cache = KVCache(model.shape, 2, LENGTH, torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match="cache"):
        model(*inputs, cache=cache)


def test_a_cache_follows_its_rows():
    model = make("decoder", {})
    tokens, place = targets(), torch.arange(LENGTH).expand(2, LENGTH)
    swapped = torch.tensor([1, 0])
    cache = KVCache(model.shape, 2, LENGTH, tokens.device, torch.float32)
    with torch.no_grad():
        whole = model(tokens, place)
        model(tokens[:, :10], place[:, :10], cache=cache)
        cache.reorder(swapped)
        rest = model(tokens[swapped, 10:], place[:, 10:], cache=cache)
    torch.testing.assert_close(rest[swapped], whole[:, 10:], rtol=0, atol=2e-5)


def test_rows_of_a_cache_may_begin_late():
    model = make("decoder", STYLES["windows"])
    tokens = targets()
    starts = torch.tensor([0, 7])
    place = (torch.arange(LENGTH) - starts[:, None]).clamp(min=0)
    cache = KVCache(model.shape, 2, LENGTH, tokens.device, torch.float32, starts)
    with torch.no_grad():
        late = torch.cat(
            [model(t, p, cache=cache) for t, p in zip(tokens.split(12, 1), place.split(12, 1), strict=True)],
            1,
        )
        alone = model(tokens[1:, 7:], torch.arange(LENGTH - 7)[None])
    torch.testing.assert_close(late[1:, 7:], alone, rtol=0, atol=2e-5)
