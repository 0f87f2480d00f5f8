"""Greedy and beam search write the tokens that transformers writes with the same weights."""

import pytest
import torch
import transformers

from distllm.export.load import load_model
from distllm.infer.beam import Search
from distllm.infer.generate import generate_rows
from distllm.infer.sampling import Sampling

WORDS, EOT, START = 60, 3, 0
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": EOT,
    "pad_token_id": 0,
}
MODELS = {
    "llama": (
        transformers.LlamaConfig(**SIZES, num_key_value_heads=2),
        transformers.LlamaForCausalLM,
    ),
    "gpt2": (
        transformers.GPT2Config(
            vocab_size=WORDS,
            n_embd=24,
            n_layer=2,
            n_head=4,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=EOT,
            pad_token_id=0,
        ),
        transformers.GPT2LMHeadModel,
    ),
    "mistral": (
        transformers.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=5),
        transformers.MistralForCausalLM,
    ),
    "t5": (
        transformers.T5Config(
            vocab_size=WORDS,
            d_model=24,
            d_kv=6,
            d_ff=40,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=START,
            eos_token_id=EOT,
            pad_token_id=0,
        ),
        transformers.T5ForConditionalGeneration,
    ),
}
PROMPTS = [[5, 9, 7, 4], [8, 6], [12, 13, 14, 15, 16, 17], [33, 4, 5]]


def with_weights(config, kind, deviation):
    """Build a model that is surer of its words than a fresh one."""
    torch.manual_seed(1)
    model = kind(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape) * deviation)
    return model


@pytest.fixture(scope="module", params=MODELS)
def twins(request, tmp_path_factory):
    theirs = with_weights(*MODELS[request.param], 0.35)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return load_model(folder), theirs


def ours(model, max_tokens, prompts=PROMPTS, **options):
    common = {"vocab_size": WORDS, "eot_id": EOT, "max_tokens": max_tokens, **options}
    if model.shape.family == "encoder_decoder":
        return generate_rows(model, [[START]] * len(prompts), prompts, **common)
    return generate_rows(model, prompts, **common)


def expected(model, max_tokens, prompts=PROMPTS, **options):
    longest = max(map(len, prompts))
    pairs = model.config.is_encoder_decoder
    fill = [[0] * (longest - len(prompt)) for prompt in prompts]
    rows = [[*p, *f] if pairs else [*f, *p] for p, f in zip(prompts, fill, strict=True)]
    mask = [[1] * len(p) + [0] * len(f) for p, f in zip(prompts, fill, strict=True)]
    mask = torch.tensor(mask if pairs else [row[::-1] for row in mask])
    out = model.generate(
        torch.tensor(rows), attention_mask=mask, max_new_tokens=max_tokens, do_sample=False, **options
    )
    new = out[:, 1 if pairs else longest :].tolist()
    return [row[: row.index(EOT)] if EOT in row else row for row in new]


def test_greedy(twins):
    mine, theirs = twins
    assert ours(mine, 20) == expected(theirs, 20)


@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_beams(twins, beams, length_penalty):
    mine, theirs = twins
    found = ours(mine, 12, search=Search(beams, length_penalty))
    assert found == expected(theirs, 12, num_beams=beams, length_penalty=length_penalty)


def test_a_search_ends_by_the_same_rule(tmp_path, monkeypatch):
    """Of eight words one ends a text: often enough that it matters when a search stops."""
    monkeypatch.setitem(globals(), "WORDS", 8)
    config = transformers.LlamaConfig(**{**SIZES, "vocab_size": 8}, num_key_value_heads=2)
    theirs = with_weights(config, transformers.LlamaForCausalLM, 0.5)
    theirs.save_pretrained(tmp_path)
    mine, prompts, said = load_model(tmp_path), [[5, 1, 7, 4], [2, 6], [4, 2, 2, 5, 6, 7], [1, 4, 5]], {}
    for early_stopping in (False, True, "never"):
        for length_penalty in (-1.0, 1.0):
            found = ours(mine, 12, prompts, search=Search(2, length_penalty, early_stopping))
            asked = {"length_penalty": length_penalty, "early_stopping": early_stopping}
            assert found == expected(theirs, 12, prompts, num_beams=2, **asked)
            said[length_penalty, early_stopping] = found
    assert said[1.0, False] != said[1.0, True]
    assert said[1.0, False] != said[1.0, "never"] != said[1.0, True]


@pytest.mark.parametrize("beams", [1, 3])
def test_repetition_is_penalised_alike(twins, beams):
    mine, theirs = twins
    # Rows of one length: theirs counts padding as something said.
    prompts = PROMPTS if mine.shape.family == "encoder_decoder" else [prompt[:2] for prompt in PROMPTS]
    found = ours(mine, 12, prompts, search=Search(beams), sampling=Sampling(repetition_penalty=1.7))
    assert found == expected(theirs, 12, prompts, num_beams=beams, repetition_penalty=1.7)
    assert found != ours(mine, 12, prompts, search=Search(beams))


def test_texts_do_not_depend_on_their_neighbours(twins):
    mine, _ = twins
    together = ours(mine, 15)
    assert [ours(mine, 15, [prompt])[0] for prompt in PROMPTS] == together


def test_a_beam_is_at_least_as_likely_as_greed(twins):
    mine, _ = twins

    def likelihood(prompt, text):
        row = torch.tensor([[*prompt, *text, EOT]])
        place = torch.arange(row.shape[1])[None]
        with torch.no_grad():
            if mine.shape.family == "encoder_decoder":
                row = torch.tensor([[START, *text, EOT]])
                place = torch.arange(row.shape[1])[None]
                source = torch.tensor([prompt])
                logits = mine(source, torch.arange(len(prompt))[None], None, row, place)
            else:
                logits = mine(row, place)
        scores = logits[0, :-1].log_softmax(-1).gather(1, row[0, 1:, None])[-len(text) - 1 : -1]
        return float(scores.sum())

    for prompt in PROMPTS:
        greedy = ours(mine, 4, [prompt])[0]
        beam = ours(mine, 4, [prompt], search=Search(8, length_penalty=0.0))[0]
        if len(greedy) == len(beam) == 4:
            assert likelihood(prompt, beam) >= likelihood(prompt, greedy) - 1e-5
