"""`distllm translate` and `answer`: a model is asked as it was taught, from a folder that travelled."""

import json

import pytest

from distllm.commands import answer, generate, translate
from distllm.config.schema_model import ModelConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.config.shape import settle_shape
from distllm.data.tokenizer import Tokenizer
from distllm.errors import ConfigError
from distllm.export.hf import export_hf
from distllm.models.init import build_model

TASKS = {
    "pairs": {"name": "seq2seq", "prompt": "{source} -> "},
    "questions": {"name": "instruct", "question_prompt": "{question} in {context}: "},
    "plain": {"name": "causal_lm"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    tokenizer = Tokenizer.train(["the cat sat on the mat"] * 4, TokenizerConfig(vocab_size=262))
    root = tmp_path_factory.mktemp("asked")
    config = ModelConfig(hidden_size=32, num_layers=1, num_heads=4, init_std=0.2)
    model = build_model(settle_shape(config, tokenizer.vocab_size, 48), seed=0)
    for name, task in TASKS.items():
        export_hf(model.state_dict(), model.shape, tokenizer, root / name, {"config": {"task": task}})
    return root


def said(capsys, command, *words):
    assert command.run(words) == 0
    return capsys.readouterr().out


def continued(capsys, folder, prompt):
    out = said(capsys, generate, f"model={folder}", f"prompt={prompt}", "max_tokens=6", "temperature=0")
    return out.removeprefix(prompt)


def test_a_source_stands_in_the_frame_of_training(folders, capsys, tmp_path):
    words = [f"model={folders}/pairs", "max_tokens=6", "beams=1"]
    told = said(capsys, translate, *words, "text=the cat")
    assert told == continued(capsys, f"{folders}/pairs", "the cat -> ")
    file = tmp_path / "sources.txt"
    file.write_text("the cat\nthe mat\n", encoding="utf-8")
    lines = [json.loads(line) for line in said(capsys, translate, *words, f"file={file}").splitlines()]
    assert [line["source"] for line in lines] == ["the cat", "the mat"]
    assert lines[0]["text"] == told.rstrip("\n")
    assert said(capsys, translate, f"model={folders}/pairs", "max_tokens=6", "text=the cat")  # by beams


def test_a_question_stands_in_the_frame_of_training(folders, capsys, tmp_path):
    words = [f"model={folders}/questions", "question=where", "max_tokens=6"]
    told = said(capsys, answer, *words, "context=the mat")
    assert told.strip() == (
        continued(capsys, f"{folders}/questions", "where in the mat: ").strip() or "no answer"
    )
    file = tmp_path / "context.txt"
    file.write_text("the mat", encoding="utf-8")
    assert said(capsys, answer, *words, f"file={file}") == told


@pytest.mark.parametrize(
    ("command", "words", "cause"),
    [
        (translate, ["model={folders}/plain", "text=x"], "cannot do 'translate'"),
        (translate, ["model={folders}/pairs"], "neither a text nor a file"),
        (answer, ["model={folders}/plain", "context=x"], "question=... is missing"),
        (answer, ["model={folders}/plain", "question=x"], "no text to look for the answer in"),
        (answer, ["model={folders}/plain", "question=x", "context=y", "file=z"], "context and file"),
        (answer, ["model={folders}/plain", "question=x", "file=/nowhere"], "is not a file"),
        (answer, ["model={folders}/plain", "question=" + "x" * 60, "context=y"], "no room for it"),
    ],
)
def test_what_cannot_be_asked_is_refused(folders, command, words, cause):
    with pytest.raises(ConfigError, match=cause) as caught:
        command.run([word.format(folders=folders) for word in words])
    assert caught.value.remedy
