"""A dataset whose ids are other tokens than those of the model to begin with is refused before step 1."""

import json

import pytest
from prepared import byte_tokenizer, write_dataset

from distllm.commands.settle import settle
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.tokenizer import Tokenizer
from distllm.data.tokenizer.fit import misfit
from distllm.errors import ConfigProblems

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 320, "hidden_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 1e4,
    "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    write_dataset(tmp_path / "data", train=[list(range(1, 200))] * 40, valid=[[1, 2, 3] * 20])
    return folder


def settled(folder, *more):
    words = [
        f"data.out={folder.parent}/data", "model=hf", f"model.init_from={folder}", "data.seq_len=32",
        "train.tokens_per_step=64", "train.max_steps=2", "engine=local", *more,
    ]  # fmt: skip
    return settle(words, None, None, need_dataset=True)


def test_equal_ids_fit_and_a_larger_vocabulary_of_the_model_does_too(folder):
    settled(folder)  # without a tokenizer nobody can tell
    byte_tokenizer().save(folder)
    settled(folder)
    more = Tokenizer.train([], TokenizerConfig(vocab_size=262, special_tokens=("<|a|>", "<|b|>")))
    longer = folder.parent / "longer"
    more.save(longer)
    assert (misfit(longer, longer), misfit(folder, folder)) == (None, None)
    assert misfit(longer, folder) is not None


def test_another_tokenizer_is_named_with_the_first_token_that_differs(folder):
    words = ["the cat sat on the mat"] * 9
    Tokenizer.train(words, TokenizerConfig(vocab_size=290)).save(folder)
    own = Tokenizer.train(["dogs dig"] * 9, TokenizerConfig(vocab_size=290))
    own.save(folder.parent / "other")
    found = misfit(folder.parent / "other", folder)
    assert "in the dataset, and" in found
    description = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = description["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(ConfigProblems) as caught:
        settled(folder)
    (problem,) = caught.value.problems
    assert "'a' has the id" in problem.cause or "'b' has the id" in problem.cause
    assert f"tokenizer.path={folder}" in problem.remedy


def test_a_vocabulary_that_is_too_small_is_refused(folder):
    (folder / "config.json").write_text(json.dumps({**LLAMA, "vocab_size": 128}))
    with pytest.raises(ConfigProblems) as caught:
        settled(folder)
    assert any("the model 128" in problem.cause for problem in caught.value.problems)
