"""Generated text, extracted answers and rankings of a model, against models whose behaviour is known."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from prepared import byte_tokenizer, write_sources
from torch import nn

from distllm.config.schema import Config, DataConfig, ModelConfig, TaskConfig
from distllm.config.shape import settle_shape
from distllm.data.examples.windows import AnswerSpans
from distllm.data.open import open_split
from distllm.evaluate.measures import find_span, measure_task
from distllm.evaluate.preferences import measure_preferences
from distllm.infer.beam import Search
from distllm.infer.generate import generate_rows
from distllm.models.init import build_model
from distllm.tasks.dpo import DPO

TOKENIZER = byte_tokenizer()
ENCODE, EOT, VOCAB = TOKENIZER.encode, TOKENIZER.eot_id, TOKENIZER.vocab_size
QA = ("context", "question", "answers")


def split_of(root, fields, documents, task, family, seq_len=64, begin=None, **data):
    held = [tuple(ENCODE(text) for text in document) for document in documents]
    write_sources(root, {"some": {"train": held, "valid": held}}, fields={"some": fields})
    config = Config(
        model=ModelConfig(family=family),
        data=DataConfig(out=str(root), seq_len=seq_len, **data),
        task=TaskConfig(name=task, stride=8),
    )
    return open_split(config, "valid", begin)


def model_of(family, head="masked_lm", seed=0):
    shape = settle_shape(
        ModelConfig(family=family, hidden_size=32, num_layers=2, num_heads=2, init_std=0.3), VOCAB, 64
    )
    return build_model(shape, seed, head=head).eval()


def test_many_sources_are_decoded_as_each_would_be_alone_without_a_cache():
    model = model_of("encoder_decoder")
    sources = [np.array([*ENCODE(text), EOT]) for text in ("hello there", "b", "some longer source text")]
    together = generate_rows(
        model,
        [[EOT]] * 3,
        [source.tolist() for source in sources],
        vocab_size=VOCAB,
        eot_id=EOT,
        max_tokens=12,
    )
    for source, said in zip(sources, together, strict=True):
        alone, places = [EOT], torch.arange(source.size)[None]
        for _ in range(12):
            tokens = torch.tensor([alone])
            logits = model(
                torch.from_numpy(source)[None], places, torch.zeros_like(places),
                tokens, torch.arange(len(alone))[None], torch.zeros_like(tokens),
            )  # fmt: skip
            alone.append(int(logits[0, -1, :VOCAB].argmax()))
        expected = alone[1:]
        assert said == (expected[: expected.index(EOT)] if EOT in expected else expected)
    assert len(set(map(tuple, together))) == 3


def test_a_decoder_goes_on_as_it_would_without_a_cache_and_stops_at_an_end():
    model = model_of("decoder")
    prompt = np.array([EOT, *ENCODE("hello")])

    def continued(ids, end):
        return generate_rows(model, [ids.tolist()], vocab_size=VOCAB, eot_id=end, max_tokens=10)[0]

    said = continued(prompt, -1)
    ids = prompt.tolist()
    for _ in range(10):
        tokens = torch.tensor([ids])
        ids.append(int(model(tokens, torch.arange(len(ids))[None])[0, -1, :VOCAB].argmax()))
    assert said == ids[prompt.size :]
    assert continued(prompt, said[3]) == said[: said.index(said[3])]
    assert len(continued(np.full(60, 5), -1)) == 4


class Copying(nn.Module):
    """An encoder-decoder that says its source backwards in capitals, or nothing."""

    def __init__(self, capitals):
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))
        self.shape = model_of("encoder_decoder").shape
        self.capitals = capitals

    def forward(self, source, places, segments, token, place, cache, *, last_only):
        assert last_only
        rows = []
        for ids, own in zip(source, segments, strict=True):
            text = TOKENIZER.decode(ids[own == 0].tolist()[:-1])
            told = [*ENCODE(text.upper() if self.capitals else text), EOT]
            at = int(place[0, 0])
            rows.append(told[at] if at < len(told) else EOT)
        logits = torch.zeros(len(rows), 1, VOCAB)
        logits[torch.arange(len(rows)), 0, torch.tensor(rows)] = 1.0
        return logits


PAIRS = [(f"the {word} is a good {word} here", f"THE {word.upper()} IS A GOOD {word.upper()} HERE")
         for word in ("cat", "dog", "sun", "hat")]  # fmt: skip


@pytest.mark.parametrize(("capitals", "bleu"), [(True, 100.0), (False, 0.0)])
def test_translations_are_scored_beside_the_source_itself(tmp_path, capitals, bleu):
    split = split_of(tmp_path / "d", ("source", "target"), PAIRS, "seq2seq", "encoder_decoder")
    told = []
    scores = measure_task(
        "seq2seq", Copying(capitals), split, TOKENIZER, limit=None, show=lambda *sample: told.append(sample)
    )
    assert told == [(a, a.upper() if capitals else a, b) for a, b in PAIRS]
    assert scores["bleu"] == pytest.approx(bleu, abs=5)
    assert scores["bleu_of_copying"] == pytest.approx(0.0, abs=5)
    assert scores["rouge1"] == pytest.approx(100.0)  # without regard to case
    assert "tok:13a" in scores["bleu_signature"]


def test_a_model_from_elsewhere_writes_and_is_scored_after_its_own_beginning(tmp_path):
    split = split_of(tmp_path / "d", ("source", "target"), PAIRS, "seq2seq", "encoder_decoder", begin=7)
    begun = split.batch(np.array([0]), np.array([0]))
    assert set(begun.tokens_BT[begun.positions_BT == 0][:1].tolist()) == {7}
    model, first = Copying(True), []
    forward = model.forward
    model.forward = lambda *a, **k: first.append(int(a[3][0, 0])) or forward(*a, **k)
    measure_task("seq2seq", model, split, TOKENIZER, limit=1)
    assert first[0] == 7


def test_a_decoder_is_asked_with_the_prompt_it_was_trained_on(tmp_path):
    split = split_of(tmp_path / "d", ("source", "target"), PAIRS, "seq2seq", "decoder")
    model, seen = model_of("decoder"), []
    forward = model.forward
    model.forward = lambda tokens, *a, **k: seen.extend(tokens.tolist()) or forward(tokens, *a, **k)
    scores = measure_task("seq2seq", model, split, TOKENIZER, limit=2)
    prompts = [TOKENIZER.decode(ids[1:]) for ids in seen if len(ids) > 1]
    assert prompts == [f"{source}\n=> " for source, _ in PAIRS[:2]]
    assert scores["bleu"] < 5


def test_a_prompt_that_fills_the_context_is_answered_with_nothing_and_counted(tmp_path):
    pairs = [*PAIRS[:2], ("x" * 70, "y")]
    split = split_of(tmp_path / "d", ("source", "target"), pairs, "seq2seq", "decoder", too_long="drop")
    told = []
    measure_task(
        "seq2seq", model_of("decoder"), split, TOKENIZER, limit=None, show=lambda *sample: told.append(sample)
    )
    assert [asked for asked, _, _ in told] == [source for source, _ in pairs]
    assert told[2][1] == ""
    assert told[0][1]


def test_several_beams_find_a_text_that_is_at_least_as_likely(tmp_path):
    split = split_of(tmp_path / "d", ("source", "target"), PAIRS, "seq2seq", "decoder")
    model, said = model_of("decoder"), {}
    for beams in (1, 4):
        told = []
        measure_task(
            "seq2seq", model, split, TOKENIZER, limit=None, search=Search(beams, length_penalty=0.0),
            show=lambda *sample, told=told: told.append(sample),
        )  # fmt: skip
        said[beams] = told
    for source, found, _ in said[4]:
        prompt = [EOT, *ENCODE(f"{source}\n=> ")]
        expected = generate_rows(
            model, [prompt], vocab_size=VOCAB, eot_id=EOT, max_tokens=64 - len(prompt),
            search=Search(4, length_penalty=0.0),
        )  # fmt: skip
        assert found == TOKENIZER.decode(expected[0])
    assert said[1] != said[4]


class Pointing(nn.Module):
    """An encoder that points to the first ``m`` and the first ``t`` after it, or to nothing."""

    def __init__(self, certain=1.0):
        super().__init__()
        self.certain = certain

    def forward(self, tokens, positions, segments):
        logits = torch.zeros(*tokens.shape, 2)
        logits[:, 0] = 0.1
        m, t = ENCODE("m")[0], ENCODE("t")[0]
        for row, ids in enumerate(tokens.tolist()):
            if m in ids:
                start = ids.index(m)
                logits[row, start, 0] = self.certain
                logits[row, ids.index(t, start), 1] = self.certain
        return logits


def record_of(context, answers):
    texts = {"context": context, "question": "who", "answers": json.dumps(answers)}
    return {name: np.array(ENCODE(text)) for name, text in texts.items()}


@pytest.mark.parametrize("window", [24, 64])
def test_the_best_span_is_found_in_whichever_window_it_lies(window):
    framing = AnswerSpans(TOKENIZER, window, 8)
    record = record_of("the old cat sat on the mat here", [])
    span = find_span(Pointing(), framing, record, EOT)
    assert (framing.answer_text(record, span.first, span.last), span.margin > 0) == ("mat", True)
    assert find_span(Pointing(certain=0.05), framing, record, EOT).margin < 0


def test_extracted_answers_are_scored(tmp_path):
    answers = json.dumps([{"text": "mat", "start": 23}])
    documents = [("the old cat sat on the mat", "who", answers), ("nothing here", "who", "[]")]
    documents[0] = (
        documents[0][0],
        "who",
        json.dumps([{"text": "mat", "start": documents[0][0].index("mat")}]),
    )
    split = split_of(tmp_path / "d", QA, documents, "extractive_qa", "encoder")
    told = []
    scores = measure_task(
        "extractive_qa", Pointing(), split, TOKENIZER, limit=None, show=lambda *sample: told.append(sample)
    )
    assert told == [("the old cat sat on the mat\nwho", "mat", "mat"), ("nothing here\nwho", "", "")]
    kinds = ("", "answerable_", "unanswerable_")
    assert scores == {f"{kind}{measure}": 100.0 for kind in kinds for measure in ("exact_match", "f1")}
    assert measure_task("extractive_qa", Pointing(0.0), split, TOKENIZER, limit=None)["f1"] == 50.0


def test_generated_answers_are_scored(tmp_path):
    documents = [("the cat", "who", json.dumps([{"text": "cat", "start": 4}])), ("it", "who", "[]")]
    split = split_of(tmp_path / "d", QA, documents, "instruct", "decoder")
    model = model_of("decoder")
    scores = measure_task("instruct", model, split, TOKENIZER, limit=None)
    assert {"exact_match", "f1", "answerable_f1", "unanswerable_f1"} <= set(scores)
    assert 0.0 <= scores["f1"] <= 100.0


class FirstLetter(nn.Module):
    """An encoder whose vector tells the first letter of a text."""

    shape = SimpleNamespace(max_seq_len=64)

    def forward(self, tokens, positions, segments):
        return nn.functional.one_hot(tokens[:, 1].long(), VOCAB).float()


def test_rankings_are_scored_beside_those_of_bm25(tmp_path):
    pairs = [("ax", "a zebra"), ("bx", "b zebra"), ("cx zebra", "c yak"), ("dx lion", "e lion")]
    split = split_of(tmp_path / "d", ("source", "target"), pairs, "contrastive", "encoder")
    told = []
    scores = measure_task(
        "contrastive", FirstLetter(), split, TOKENIZER, limit=None, show=lambda *sample: told.append(sample)
    )
    assert told[0] == ("ax", "a zebra", "a zebra")
    assert told[3] == ("dx lion", "a zebra", "e lion")  # of equal ones the first
    assert scores["mrr@4"] == pytest.approx((1 + 1 + 1 + 1 / 4) / 4)
    assert scores["recall@4"] == 1.0
    assert scores["bm25_mrr@4"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1) / 4)


def test_a_text_longer_than_the_context_is_embedded_as_far_as_it_goes(tmp_path):
    shape = settle_shape(
        ModelConfig(family="encoder", hidden_size=16, num_layers=1, num_heads=2, positions="learned"),
        VOCAB,
        8,
    )
    model = build_model(shape, 0, head="embedding").eval()
    pairs = [("ab", "x" * 30), ("cd", "y" * 30), ("ef", "x" * 6 + "z")]
    split = split_of(tmp_path / "d", ("source", "target"), pairs, "contrastive", "encoder", too_long="cut")
    assert 0.0 < measure_task("contrastive", model, split, TOKENIZER, limit=None)["mrr@3"] <= 1.0


class Liking(nn.Module):
    """A decoder that thinks one letter likelier than all others, everywhere."""

    def __init__(self, letter):
        super().__init__()
        self.favour = nn.Parameter(torch.zeros(VOCAB).index_fill(0, torch.tensor(ENCODE(letter)), 2.0))

    def forward(self, tokens, positions, segments):
        return self.favour.expand(*tokens.shape, VOCAB)


def test_preferences_are_told_by_both_models_and_what_was_gained_between_them(tmp_path):
    pairs = [("p", "aaa", "bbb"), ("q", "aa", "cc"), ("r", "bb", "aa"), ("s", "bb", "cc")]
    split = split_of(tmp_path / "d", ("prompt", "chosen", "rejected"), pairs, "dpo", "decoder")
    task = DPO(VOCAB, 0.5, Liking("b"))
    scores = measure_preferences(task, Liking("a"), split, limit=None)
    # by log-probabilities: each favoured letter is worth 2
    assert scores["preferred"] == 2 / 4
    assert scores["preferred_by_reference"] == 2 / 4
    assert scores["reward_accuracy"] == 2 / 4
    assert scores["reward_margin"] == pytest.approx(0.5 * ((6 + 6) + 4 - (4 + 4) - 4) / 4)
    first = measure_preferences(task, Liking("a"), split, limit=1)
    assert set(first) == set(scores)


def test_tasks_whose_loss_says_it_all_have_no_measures(tmp_path):
    fields = ("prompt", "chosen", "rejected")
    split = split_of(tmp_path / "d", fields, [("p", "a", "b")], "dpo", "decoder")
    assert measure_task("dpo", model_of("decoder"), split, TOKENIZER, limit=None) == {}
