"""A dataset whose ids are other tokens than those of the model to begin with is refused before step 1."""

import json

import pytest
from prepared import byte_tokenizer, write_dataset

from distllm.commands.settle import settle
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.tokenizer import Tokenizer
from distllm.data.tokenizer.fit import misfit, notes_on_fit
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


def problem_of(folder):
    with pytest.raises(ConfigProblems) as caught:
        settled(folder)
    (problem,) = caught.value.problems
    return problem


def changed(folder, change):
    """Rewrite a folder's tokenizer.json."""
    description = json.loads((folder / "tokenizer.json").read_text())
    change(description)
    (folder / "tokenizer.json").write_text(json.dumps(description))


def swap(one, other):
    def change(description):
        vocab = description["model"]["vocab"]
        vocab[one], vocab[other] = vocab[other], vocab[one]

    return change


def test_equal_ids_fit_and_nothing_is_told(folder):
    byte_tokenizer().save(folder)
    settled(folder)
    assert notes_on_fit(folder.parent / "data", folder) == []


def test_a_folder_without_a_tokenizer_is_told_and_not_refused(folder):
    settled(folder)
    (note,) = notes_on_fit(folder.parent / "data", folder)
    assert "holds no tokenizer.json" in note


def test_a_tokenizer_that_has_grown_fits_whichever_of_the_two_it_is(folder):
    byte_tokenizer().save(folder)
    grown = folder.parent / "grown"
    byte_tokenizer().save(grown)
    chat = [
        {"id": 257 + n, "content": name, "special": True} for n, name in enumerate(("<|user|>", "<|end|>"))
    ]
    changed(grown, lambda description: description["added_tokens"].extend(chat))
    assert misfit(grown, folder) is None
    assert misfit(folder, grown) is None


def test_other_tokens_at_the_same_ids_are_refused_with_some_of_them_named(folder):
    Tokenizer.train(["the cat sat on the mat"] * 9, TokenizerConfig(vocab_size=290)).save(folder)
    own = folder.parent / "own"
    Tokenizer.train(["dogs dig"] * 9, TokenizerConfig(vocab_size=290)).save(own)
    assert "id 257 is" in misfit(own, folder)
    changed(folder, swap("a", "b"))
    changed(folder, swap("x", "y"))
    problem = problem_of(folder)
    ids = byte_tokenizer().encode("a")
    assert f"id {ids[0]} is 'a' in the dataset and 'b' in the model" in problem.cause
    assert "and so on for 1 more of 257" in problem.cause
    assert f"tokenizer.path={folder}" in problem.remedy
    assert {"model.init_from", "data.out"} == set(problem.where.split(", "))


def test_special_tokens_are_compared_and_named_first(folder):
    byte_tokenizer().save(folder)

    def move_the_end(description):
        end = description["added_tokens"][0]
        assert end["id"] == 0
        end["id"] = 300
        description["model"]["vocab"].pop(end["content"], None)

    changed(folder, swap("a", "b"))
    changed(folder, move_the_end)
    cause = problem_of(folder).cause
    assert f"model in {folder}: '<|endoftext|>' is 0 in the dataset and 300 in the model; id" in cause


def test_pieces_that_stand_in_a_list_have_their_places_as_ids(folder):
    for name, pieces in (("one", ["<unk>", "a", "b"]), ("two", ["<unk>", "b", "a"])):
        (folder / name).mkdir()
        vocab = [[piece, 0.0] for piece in pieces]
        content = {"model": {"type": "Unigram", "vocab": vocab}, "added_tokens": []}
        (folder / name / "tokenizer.json").write_text(json.dumps(content))
    assert misfit(folder / "one", folder / "one") is None
    assert misfit(folder / "one", folder / "two").startswith(
        "id 1 is 'a' in the dataset and 'b' in the model"
    )


def test_another_end_of_text_is_told(folder):
    byte_tokenizer().save(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "a"}))
    settled(folder)
    (note,) = notes_on_fit(folder.parent / "data", folder)
    assert f"texts of the dataset end with <|endoftext|>, those of {folder} with a" in note


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {}}', '{"model": {"vocab": [3]}}'])
def test_a_tokenizer_that_cannot_be_read_is_named(folder, content):
    (folder / "tokenizer.json").write_text(content)
    problem = problem_of(folder)
    assert "is not a tokenizer.json" in problem.cause
    assert problem.where == str(folder / "tokenizer.json")


def test_a_vocabulary_that_is_too_small_is_refused(folder):
    (folder / "config.json").write_text(json.dumps({**LLAMA, "vocab_size": 128}))
    assert "the model 128" in problem_of(folder).cause
