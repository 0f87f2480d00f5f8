import collections
from contextlib import contextmanager

import pytest
import torch
from generation import generate

from distllm.config.schema import ModelConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.config.shape import settle_shape
from distllm.data.tokenizer import Tokenizer
from distllm.errors import ConfigError
from distllm.infer.beam import Search
from distllm.infer.generate import generate_rows, sample_text
from distllm.models.cache import KVCache
from distllm.models.init import build_model
from distllm.models.stack import compile_blocks

VOCAB, CONTEXT, EOT = 50, 24, 0
PROMPT = [7, 3, 9, 3]


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, init_std=0.2)
    return build_model(settle_shape(config, VOCAB, CONTEXT), seed=1)


def run(model, prompt=PROMPT, *, vocab_size=VOCAB, eot_id=-1, max_tokens=10, **options):
    return generate(model, prompt, vocab_size=vocab_size, eot_id=eot_id, max_tokens=max_tokens, **options)


def logits_after(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), torch.arange(len(ids))[None])[0, -1]


def test_greedy_takes_the_likeliest_token_of_the_whole_text(model):
    ids = list(PROMPT)
    for _ in range(10):
        ids.append(int(logits_after(model, ids)[:VOCAB].argmax()))
    assert run(model) == ids[len(PROMPT) :]


def test_cached_logits_are_those_of_the_whole_text_for_every_cut(model):
    ids_BT = torch.randint(VOCAB, (3, CONTEXT), generator=torch.Generator().manual_seed(0))
    positions_BT = torch.arange(CONTEXT).expand(3, CONTEXT)
    with torch.no_grad():
        whole = model(ids_BT, positions_BT)
        for cuts in ([CONTEXT], [1] * CONTEXT, [10, 1, 5, 8], [1, 23]):
            cache = KVCache(model.shape, 3, CONTEXT, ids_BT.device, torch.float32)
            parts = zip(ids_BT.split(cuts, 1), positions_BT.split(cuts, 1), strict=True)
            pieces = [model(tokens, positions, cache=cache) for tokens, positions in parts]
            torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-5)


@contextmanager
def rows_of_the_head(model):
    """Yield a list that gets the rows and positions of which the output projection makes logits."""
    seen = []
    handle = model.lm_head.register_forward_hook(lambda _m, _given, out: seen.append(tuple(out.shape[:2])))
    yield seen
    handle.remove()


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize("beams", [1, 3])
def test_logits_are_made_for_the_last_position_of_each_row_only(family, beams):
    config = ModelConfig(
        family=family, hidden_size=32, num_layers=1, num_heads=4, init_std=0.2, logit_softcap=3.0
    )
    model = build_model(settle_shape(config, VOCAB, CONTEXT), seed=1).eval()
    prompts = [PROMPT, PROMPT[:2], [*PROMPT, 5, 6, 1]]
    sources = [[1, 2, 3], [4], [5, 6]] if family == "encoder_decoder" else None
    options = {"vocab_size": VOCAB, "eot_id": -1, "max_tokens": 5, "search": Search(beams)}
    with rows_of_the_head(model) as seen:
        few = generate_rows(model, prompts, sources, **options)
    assert seen == [(3, 1), *[(3 * beams, 1)] * 4]  # beams of a prompt begin alike: it is read once
    forward = model.forward

    def forward_of_all(*given, last_only, **named):
        return forward(*given, **named)

    model.forward = forward_of_all
    with rows_of_the_head(model) as seen:
        assert generate_rows(model, prompts, sources, **options) == few
    assert seen[0] == (3, 7)  # it would have been seven times as many for the prompts


def test_the_last_logits_are_those_of_all(model):
    ids_BT = torch.randint(VOCAB, (3, CONTEXT), generator=torch.Generator().manual_seed(2))
    places_BT = torch.arange(CONTEXT).expand(3, CONTEXT)
    with torch.no_grad():
        last_B1V = model(ids_BT, places_BT, last_only=True)
        torch.testing.assert_close(last_B1V, model(ids_BT, places_BT)[:, -1:], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="every position"):
        model(ids_BT, places_BT, targets_BT=ids_BT, last_only=True)


def test_a_full_cache_and_segments_with_a_cache_are_refused(model):
    cache = KVCache(model.shape, 1, 4, torch.device("cpu"), torch.float32)
    ids_BT = torch.tensor([[1, 2, 3, 4, 5]])
    with pytest.raises(ValueError, match="exceed"):
        model(ids_BT, ids_BT, cache=cache)
    with pytest.raises(ValueError, match="segments"):
        model(ids_BT, ids_BT, torch.zeros_like(ids_BT), cache=cache)


def test_the_same_seed_draws_the_same_text_and_another_does_not(model):
    drawn = [run(model, temperature=1.5, seed=seed, max_tokens=20) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_each_token_is_a_draw_of_its_own():
    """A model of zeros finds all tokens alike: only the stream of random numbers tells them apart."""
    config = ModelConfig(hidden_size=32, num_layers=1, num_heads=4, init_std=0.0)
    zeros = build_model(settle_shape(config, VOCAB, CONTEXT), seed=0)
    assert len(set(run(zeros, temperature=1.0, max_tokens=20))) > 10


def test_stops_at_the_end_of_text_and_leaves_it_out(model):
    greedy = run(model, max_tokens=10)
    first = greedy.index(greedy[4])
    assert run(model, eot_id=greedy[4]) == greedy[:first]


def test_the_context_bounds_the_text(model):
    assert len(run(model, max_tokens=1000)) == CONTEXT - len(PROMPT)
    for prompt in ([], [1] * CONTEXT):
        with pytest.raises(ConfigError, match="context"):
            run(model, prompt)


@pytest.mark.parametrize("positions", ["rope", "learned", "alibi"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_text_is_as_long_as_alone_beside_one_that_fills_the_context(positions, beams):
    config = ModelConfig(hidden_size=32, num_layers=2, num_heads=4, init_std=0.2, positions=positions)
    model = build_model(settle_shape(config, VOCAB, CONTEXT), seed=4)
    long = [1 + number % 7 for number in range(CONTEXT - 2)]
    options = {"vocab_size": VOCAB, "eot_id": -1, "max_tokens": 12, "search": Search(beams)}
    alone = [generate_rows(model, [prompt], **options)[0] for prompt in (PROMPT, long)]
    assert [len(text) for text in alone] == [12, 2]
    assert generate_rows(model, [PROMPT, long], **options) == alone


def test_padding_of_the_vocabulary_is_never_drawn(model):
    assert model.shape.vocab_size > VOCAB
    for seed in range(20):
        assert max(run(model, vocab_size=5, temperature=50.0, seed=seed)) < 5


def frequencies(model, draws, **options):
    return collections.Counter(run(model, max_tokens=1, seed=seed, **options)[0] for seed in range(draws))


def test_draws_follow_the_tempered_distribution(model):
    counts = frequencies(model, 400, temperature=0.5)
    probs = (logits_after(model, PROMPT)[:VOCAB].double() / 0.5).softmax(0)
    expected = probs * 400
    observed = torch.tensor([counts[i] for i in range(VOCAB)], dtype=torch.float64)
    common = expected > 5
    chi_square = ((observed - expected).square() / expected)[common].sum()
    freedom = int(common.sum())
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_top_k_and_top_p_keep_the_likeliest_only(model):
    probs = logits_after(model, PROMPT)[:VOCAB].softmax(0)
    order = probs.argsort(descending=True).tolist()
    assert set(frequencies(model, 80, temperature=1.0, top_k=3)) == set(order[:3])
    kept = next(n for n in range(1, VOCAB + 1) if float(probs[order[:n]].sum()) >= 0.3)
    assert 1 < kept < VOCAB
    assert set(frequencies(model, 80, temperature=1.0, top_p=0.3)) == set(order[:kept])
    assert set(frequencies(model, 80, temperature=1.0, top_p=0.0)) == {order[0]}


def test_every_rank_of_several_runs_all_forward_passes(model, monkeypatch):
    greedy = run(model)
    passes = []
    hook = model.register_forward_hook(lambda *_: passes.append(1))
    run(model, eot_id=greedy[1])
    alone = len(passes)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert run(model, eot_id=greedy[1]) == greedy[: greedy.index(greedy[1])]
    hook.remove()
    assert len(passes) - alone == 10 > alone


def test_the_training_mode_is_restored(model):
    model.train()
    run(model)
    assert model.training


def test_compiled_blocks_are_not_compiled_again_for_each_length(monkeypatch):
    config = ModelConfig(hidden_size=32, num_layers=1, num_heads=4, init_std=0.2)
    plain, compiled = (build_model(settle_shape(config, VOCAB, CONTEXT), seed=1) for _ in range(2))

    def refuse(*_args, **_kwargs):
        raise AssertionError("compiled during generation")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend=refuse, **options))
    compile_blocks(compiled)
    assert run(compiled) == run(plain)


def test_text_goes_in_and_comes_out():
    tokenizer = Tokenizer.train(["the cat sat on the mat"] * 4, TokenizerConfig(vocab_size=262))
    config = ModelConfig(hidden_size=32, num_layers=1, num_heads=4)
    model = build_model(settle_shape(config, tokenizer.vocab_size, CONTEXT), seed=0)
    text = sample_text(model, tokenizer, "the cat", max_tokens=5, temperature=0.0, seed=0)
    ids = [tokenizer.eot_id, *tokenizer.encode("the cat")]
    options = {"vocab_size": tokenizer.vocab_size, "eot_id": tokenizer.eot_id, "max_tokens": 5}
    assert text == tokenizer.decode(generate(model, ids, **options))
    assert sample_text(model, tokenizer, "", max_tokens=5, temperature=1.0, seed=0)
    context = model.shape.max_seq_len
    assert sample_text(model, tokenizer, "cat " * context, max_tokens=5, temperature=1.0, seed=0)
