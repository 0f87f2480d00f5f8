"""The search commands: ranks that are started or joined, models by name, and what is said at the end."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import serving
import tiny
import tokenizers
import torch
from search_folders import TEXTS, corpus_file, encoder_folder
from tokenizers import models, normalizers, pre_tokenizers

import distllm.commands.search as command
from distllm.cli import main
from distllm.commands.search import BuildOptions, open_index
from distllm.errors import CheckpointError, ConfigError, LaunchError, MissingDependency
from distllm.export.hf import FACTS
from distllm.extras import require
from distllm.search import encoder as encoders
from distllm.search.encoder import Origin, TextEncoder, encoder_of_folder, encoder_of_run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("commands-search")
    encoder_folder(root / "encoder")
    corpus_file(root / "texts.jsonl")
    return root


def words_of(root, out, *more):
    return ["search", "build", f"model={root}/encoder", f"out={out}", *more]


def manifest_of(directory):
    return json.loads((directory / "manifest.json").read_text())


def test_a_folder_is_searched_by_the_names_of_its_files(place, tmp_path, capsys):
    for name, text in TEXTS.items():
        (tmp_path / "in" / "deep").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / "deep" / f"{name}.txt").write_text(text)
    assert main(words_of(place, tmp_path / "index", f"corpus={tmp_path}/in/", "ranks=1")) == 0
    printed = capsys.readouterr().out
    assert f"index {tmp_path}/index: 4 passages of 4 documents" in printed
    assert f"next: distllm search query index={tmp_path}/index" in printed
    assert main(["search", "query", f"index={tmp_path}/index", "text=pasta", "top=1"]) == 0
    assert "1. deep/" in capsys.readouterr().out


def test_building_again_replaces_the_index_and_is_the_same_to_the_last_bit(place, tmp_path, capsys):
    out = tmp_path / "index"
    contents = []
    for _ in range(2):
        assert main(words_of(place, out, f"corpus={place}/texts.jsonl", "ranks=1")) == 0
        contents.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert contents[0] == contents[1]
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "only this"}) + "\n")
    assert main(words_of(place, out, f"corpus={tmp_path}/one.jsonl", "ranks=1")) == 0
    assert manifest_of(out)["texts"]["passages"] == 1


def test_a_graph_says_how_much_it_finds(place, tmp_path, capsys):
    lines = [json.dumps({"text": f"the model {number} reads"}) for number in range(150)]
    (tmp_path / "many.jsonl").write_text("\n".join([*lines, '{"text": ""}', "no json"]))
    corpus = f"corpus={tmp_path}/many.jsonl"
    assert main(words_of(place, tmp_path / "graph", corpus, "ranks=1", "exact=false")) == 0
    printed = capsys.readouterr().out
    assert "the graph finds" in printed
    assert "left out by" in printed
    vectors = manifest_of(tmp_path / "graph")["vectors"]
    assert vectors["exact"] is False
    assert 0.5 < vectors["agreement"] <= 1.0
    assert manifest_of(tmp_path / "graph")["texts"]["documents"] >= 150


def test_a_rank_of_a_launcher_joins_it(place, tmp_path, monkeypatch, capsys):
    for name, value in tiny.only_rank().items():
        monkeypatch.setenv(name, value)
    assert main(words_of(place, tmp_path / "index", f"corpus={place}/texts.jsonl", "ranks=7")) == 0
    assert not torch.distributed.is_initialized()
    assert manifest_of(tmp_path / "index")["texts"]["passages"] == 4


def started(monkeypatch, code):
    asked = []

    def run_ranks(words, *, num_ranks, threads_per_rank):
        asked.append((words, num_ranks, threads_per_rank))
        return code

    monkeypatch.setattr("distllm.cluster.local.run_ranks", run_ranks)
    return asked


def test_ranks_run_the_same_command_with_a_thread_each(place, tmp_path, monkeypatch):
    asked = started(monkeypatch, 0)
    words = words_of(place, tmp_path / "index", f"corpus={place}/texts.jsonl", "ranks=3")
    assert main(words) == 0
    assert asked == [(["-m", "distllm.cli", *words], 3, 1)]
    monkeypatch.setattr("distllm.machine.available_cores", lambda: 5)
    main(words[:-1])
    assert asked[1][1] == 5
    assert command._default_ranks("cuda") == 1


def test_ranks_that_fail_end_the_command_as_they_ended(place, tmp_path, monkeypatch, capsys):
    words = words_of(place, tmp_path / "index", f"corpus={place}/texts.jsonl", "ranks=2")
    started(monkeypatch, 65)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 65
    started(monkeypatch, 137)
    assert main(words) == LaunchError.exit_code
    assert "killed by SIGKILL" in capsys.readouterr().err
    asked = started(monkeypatch, 0)
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert main(words) == MissingDependency.exit_code
    assert asked == []


def test_options_are_told_by_help(capsys):
    for action in ("build", "query"):
        with pytest.raises(SystemExit):
            main(["search", action, "--help"])
        assert "default" in capsys.readouterr().out
    assert main(["search"]) == 0
    assert "build" in capsys.readouterr().out
    assert main(["search", "query", "index=x", "text=y", "mode=magic"]) == 64
    assert "hybrid" in capsys.readouterr().err


def test_how_a_corpus_is_read_follows_from_its_name_or_the_source():
    read = command._read_config(BuildOptions(corpus="a.csv", text_key="body", id_key="key", max_bytes=9))
    assert (read.source, read.paths, read.text_key, read.id_key, read.max_bytes) == (
        "csv", ("a.csv",), "body", "key", 9
    )  # fmt: skip
    assert command._read_config(BuildOptions(corpus="a.csv", source="text")).source == "text"
    assert command._read_config(BuildOptions(source="pydocs")).paths == ()
    with pytest.raises(ConfigError, match=r"corpus=\.\.\. is missing"):
        command._read_config(BuildOptions())


def test_an_origin_is_named_as_on_a_command_line():
    assert str(Origin("folder", "/x")) == "model=/x"
    assert str(Origin("run", "/r", 7)) == "run=/r step=7"
    assert str(Origin("run", "/r")) == "run=/r"


def resolved(task):
    return SimpleNamespace(config=SimpleNamespace(task=SimpleNamespace(name=task)))


def test_a_run_of_another_task_has_no_vectors(tmp_path):
    with pytest.raises(ConfigError, match="has learned masked_lm, which gives no vectors") as error:
        encoder_of_run(tmp_path, resolved("masked_lm"))
    assert "experiment=embed" in str(error.value)


def test_a_run_is_embedded_between_ends_of_texts(place, tmp_path, monkeypatch):
    folder = encoder_of_folder(place / "encoder")
    trained = SimpleNamespace(model=folder.model, tokenizer=folder.tokenizer, step=12)
    monkeypatch.setattr(encoders, "load_trained", lambda checkpoints, resolved, step: trained)
    run = encoder_of_run(tmp_path, resolved("contrastive"))
    assert run.origin == Origin("run", str(tmp_path), 12)
    assert run.facts()["digest"] == folder.facts()["digest"]  # an export is the same model
    np.testing.assert_array_equal(run.embed(["a token"]), folder.embed(["a token"]))


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="the run has no checkpoint"):
        encoder_of_run(tmp_path, resolved("contrastive"))


def test_vectors_have_length_one_and_do_not_depend_on_neighbours_or_on_what_is_cut(place):
    encoder = encoder_of_folder(place / "encoder")
    texts = ["the model", "a token and learns " * 9, ""]
    together = encoder.embed(texts)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    for row, text in enumerate(texts):
        np.testing.assert_allclose(encoder.embed([text])[0], together[row], atol=1e-5)
    assert encoder.embed([]).shape == (0, 32)
    rounded = encoder.embed(texts, "bf16")
    assert 0 < np.abs(rounded - together).max() < 0.05
    np.testing.assert_allclose(np.linalg.norm(rounded, axis=1), 1.0, atol=1e-5)
    long, longer = encoder.embed(["the " * 900]), encoder.embed(["the " * 901])
    np.testing.assert_array_equal(long, longer)


def test_a_model_of_others_reads_texts_between_its_own_marks(place, tmp_path):
    """A BERT tokenizer: [CLS] text [SEP], where a tokenizer of ours has its end of text at both ends."""
    folder = tmp_path / "bert"
    folder.mkdir()
    for file in (place / "encoder").iterdir():
        if file.is_file() and file.name != FACTS:
            (folder / file.name).symlink_to(file)
    vocabulary = {name: number for number, name in enumerate(["[UNK]", "[CLS]", "[SEP]", "the", "model"])}
    inner = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    inner.add_special_tokens(["[CLS]", "[SEP]", "[UNK]"])
    (folder / "tokenizer.json").unlink()
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"cls_token": "[CLS]", "sep_token": "[SEP]"}))
    encoder = encoder_of_folder(folder)
    seen = []
    encoder.model.register_forward_pre_hook(lambda _module, given: seen.append(given[0].tolist()))
    encoder.embed(["The model"])
    assert seen == [[[1, 3, 4, 2]]]


def test_an_index_is_opened_with_the_model_it_names(place, tmp_path):
    assert main(words_of(place, tmp_path / "index", f"corpus={place}/texts.jsonl", "ranks=1")) == 0
    index = open_index(str(tmp_path / "index"))
    assert isinstance(index.encoder, TextEncoder)
    assert index.encoder.origin == Origin("folder", str(place / "encoder"))
    assert len(index.search("mill", 2)) == 2
    assert require("faiss", "x", extra="search")
    words = serving.tokenizer()
    run = TextEncoder(index.encoder.model, words, Origin("run", "r"))
    assert words.fingerprint != index.encoder.tokenizer.fingerprint  # the folder's encloses texts by itself
    assert run.facts()["digest"] == index.encoder.facts()["digest"]
