"""`distllm generate` with a Hugging Face folder: prompts, files, beams, and what is refused."""

import json

import pytest

from distllm.commands import generate
from distllm.config.schema_model import ModelConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.config.shape import settle_shape
from distllm.data.tokenizer import Tokenizer
from distllm.errors import ConfigError
from distllm.export.hf import export_hf
from distllm.models.init import build_model

FAMILIES = {
    "decoder": {},
    "encoder_decoder": {"positions": "relative", "attention_scale": 1.0, "norm_eps": 1e-6},
    "encoder": {"norm": "layer", "embed_norm": True, "activation": "gelu"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    tokenizer = Tokenizer.train(["the cat sat on the mat"] * 4, TokenizerConfig(vocab_size=262))
    root = tmp_path_factory.mktemp("folders")
    for family, options in FAMILIES.items():
        config = ModelConfig(
            family=family, hidden_size=32, num_layers=1, num_heads=4, init_std=0.2, **options
        )
        model = build_model(settle_shape(config, tokenizer.vocab_size, 48), seed=0)
        export_hf(model.state_dict(), model.shape, tokenizer, root / family, {})
    return root


def said(capsys, *words):
    assert generate.run(words) == 0
    return capsys.readouterr().out


def test_a_decoder_continues_its_prompt(folders, capsys):
    words = [f"model={folders}/decoder", "prompt=the cat", "max_tokens=5", "temperature=0"]
    first = said(capsys, *words)
    assert first.startswith("the cat")
    assert said(capsys, *words) == first
    assert said(capsys, *words, "repetition_penalty=9") != first


def test_an_encoder_decoder_writes_something_else(folders, capsys):
    words = [f"model={folders}/encoder_decoder", "prompt=the cat", "max_tokens=5", "temperature=0"]
    assert not said(capsys, *words).startswith("the cat")
    assert said(capsys, *words, "beams=3")


def test_a_file_is_answered_line_by_line_whatever_the_batch(folders, capsys, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("the cat\nthe mat sat\n\non\n", encoding="utf-8")
    words = [f"model={folders}/decoder", f"file={file}", "max_tokens=5", "temperature=0"]
    lines = [json.loads(line) for line in said(capsys, *words).splitlines()]
    assert [line["prompt"] for line in lines] == ["the cat", "the mat sat", "", "on"]
    alone = [json.loads(line) for line in said(capsys, *words, "batch_size=1").splitlines()]
    assert alone == lines
    assert len({line["text"] for line in lines}) > 1
    drawn = [*words[:-1], "temperature=1.5"]
    assert said(capsys, *drawn, "batch_size=1") == said(capsys, *drawn) != said(capsys, *words)


@pytest.mark.parametrize("options", [("top_k=3",), ("top_p=0.5",), ("min_p=0.2",), ("temperature=2.0",)])
def test_draws_depend_on_the_seed_only(folders, capsys, options):
    words = [f"model={folders}/decoder", "max_tokens=12", *options]
    one, again, other = (said(capsys, *words, f"seed={seed}") for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["prompt=x"], "give a run or a model"),
        (["run=a", "model=b"], "both a run and a model"),
        (["model={folders}/decoder", "prompt=x", "file=y"], "both a prompt and a file"),
        (["model={folders}/decoder", "file=/nowhere/prompts"], "is not a file"),
        (["model={folders}"], r"holds no config\.json"),
        (["model={folders}/encoder"], "does not generate"),
        (["model={folders}/decoder", "prompt=" + "the mat " * 60], "the model's context 48"),
    ],
)
def test_what_cannot_be_is_refused(folders, words, cause):
    with pytest.raises(ConfigError, match=cause) as caught:
        generate.run([word.format(folders=folders) for word in words])
    assert caught.value.remedy
