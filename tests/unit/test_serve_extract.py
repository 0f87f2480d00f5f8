"""Answers that are a stretch of a text, over HTTP and of an index, and a server of an index alone."""

import contextlib

import httpx
import pytest
import serving
import torch
from prepared import byte_tokenizer
from search_folders import corpus_file, encoder_folder
from torch import nn

from distllm.cli import main
from distllm.commands.serve import Options, _backend
from distllm.errors import ConfigError
from distllm.models.heads import SpanHead
from distllm.serve.backend import Backend
from distllm.serve.extract import Extractor

WORDS = byte_tokenizer()
CONTEXT = "Ünd so wohnt in Haus 7 " + "niemand " * 30 + "ein «Hamster» allein."


class Pointing(nn.Module):
    """An encoder that points to the word after ``ein``, the surer the more of the text it sees."""

    def __init__(self, positions=96):
        super().__init__()
        words = serving.tokenizer()
        self.shape = encoder(words.vocab_size, positions).shape
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, tokens, positions, segments=None):
        logits = torch.zeros(*tokens.shape, 2)
        logits[:, 0] = 0.5
        for row, ids in enumerate(tokens.tolist()):
            text = "".join(WORDS.decode([i])[0] for i in ids)  # a character each, of « and » two
            if (at := text.find("ein \ufffd\ufffd")) >= 0 and (end := text.find("\ufffd", at + 6)) > 0:
                logits[row, at + 6, 0] = logits[row, end - 1, 1] = 2.0
        return logits


def encoder(vocab_size, positions, head="span"):
    from distllm.config.schema import ModelConfig
    from distllm.config.shape import settle_shape
    from distllm.models.init import build_model

    config = ModelConfig(family="encoder", hidden_size=32, num_layers=1, num_heads=4, init_std=0.2)
    return build_model(settle_shape(config, vocab_size, positions), seed=1, head=head).eval()


def passages(*texts):
    return [{"title": f"t{number}", "passage": text} for number, text in enumerate(texts)]


def test_an_answer_is_found_in_the_passage_and_window_where_it_stands():
    extractor = Extractor(Pointing(), WORDS)
    answer, (source,) = extractor.answer("Wer?", passages("nichts hier", CONTEXT, ""))
    assert answer == "Hamster"
    assert source["title"] == "t1"
    ((begin, end),) = source["matches"]
    assert source["snippet"][begin:end] == "Hamster"
    assert source["score"] == pytest.approx(3.0)
    assert extractor.answer("Wer?", passages("nichts hier")) == ("", [])
    assert extractor.answer("Wer?", []) == ("", [])


def test_a_question_that_fills_the_window_is_refused():
    for question in ("", "w" * 48):
        with pytest.raises(ConfigError, match="tokens, the model has room for 47"):
            Extractor(Pointing(), WORDS).answer(question, passages("a"))


def test_what_an_encoder_can_do_follows_from_its_head():
    words = serving.tokenizer()
    spans = Backend("s", encoder(words.vocab_size, 64), words, index=object())
    assert isinstance(spans.model.head, SpanHead)
    assert spans.abilities == ["answer", "search"]
    assert Backend("e", encoder(words.vocab_size, 64, "embedding"), words).abilities == ["embeddings"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Exported encoders with each head, and an index."""
    root = tmp_path_factory.mktemp("serve-index")
    encoder_folder(root / "encoder")
    encoder_folder(root / "spans", head="span")
    corpus_file(root / "texts.jsonl")
    words = (
        f"corpus={root}/texts.jsonl",
        "id_key=id",
        f"model={root}/encoder",
        f"out={root}/index",
        "ranks=1",
    )
    assert main(["search", "build", *words]) == 0
    return root


@contextlib.contextmanager
def served(**options):
    with (
        serving.running(_backend(Options(**options))) as (address, _),
        httpx.Client(base_url=address) as client,
    ):
        yield client


@pytest.mark.slow
def test_an_index_is_served_alone_or_beside_a_model_that_answers(place):
    with served(index=str(place / "index")) as client:
        (model,) = client.get("/v1/models").json()["data"]
        assert (model["id"], model["abilities"]) == ("encoder", ["embeddings", "search"])
        hits = client.post("/v1/search", json={"query": "pasta", "top": 2}).json()["hits"]
        assert len(hits) == 2
        first = next(hit for hit in hits if hit["title"] == "cook")
        assert [first["snippet"][a:b] for a, b in first["matches"]] == ["pasta"]
    with served(model=str(place / "spans"), index=str(place / "index")) as client:
        assert client.get("/v1/models").json()["data"][0]["abilities"] == ["answer", "search"]
        said = client.post("/v1/answer", json={"question": "what?", "context": "the model reads"}).json()
        assert said["answer"] in "the model reads"
        asked = client.post("/v1/answer", json={"question": "pasta"}).json()
        assert all(source["title"] in ("cook", "cats", "rain", "stocks") for source in asked["sources"])
        long = client.post("/v1/answer", json={"question": "the " * 400, "context": "a"})
        assert long.status_code == 400
        assert "fewer words" in long.json()["error"]["message"]


def test_what_cannot_be_served_is_refused_before_anything_is_loaded(capsys):
    assert main(["serve"]) == 64
    assert "nothing is given" in capsys.readouterr().err
    assert main(["serve", "run=a", "model=b", "index=c"]) == 64
    assert "both a run and a model" in capsys.readouterr().err
    assert main(["serve", "index=/nowhere/at/all"]) == 64
    assert "holds no search index" in capsys.readouterr().err
