"""Extractive questions with a tokenizer that changes text: answers keep their characters."""

import json

import numpy as np
import pytest
import torch
from prepared import byte_tokenizer
from torch import nn
from wordpiece import write_wordpiece

from distllm.config.schema import Config, DataConfig, ModelConfig, TaskConfig
from distllm.config.schema_clean import CleanConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.batch import IGNORE_INDEX
from distllm.data.examples.answers import (
    CONTEXT,
    answers_of,
    context_of,
    encode_answers,
    places_of,
    question_record,
)
from distllm.data.examples.windows import END, START, AnswerSpans
from distllm.data.open import open_split
from distllm.data.pipeline import prepare
from distllm.data.records import ANSWERS
from distllm.data.shards import document_texts
from distllm.data.tokenizer import Tokenizer
from distllm.errors import DataError
from distllm.evaluate.measures import measure_task

pytestmark = pytest.mark.filterwarnings("ignore::distllm.data.tokenizer.tokenizer.LossyTokenizer")
CONTEXT_TEXT = (
    "In 2015 the Café of Zoë  was sold, for $5.3 million, to (Straße & Söhne); 漢 lives in House 9."
)
ANSWERED = ["2015", "Café of Zoë", "$5.3 million", "Straße & Söhne", "漢", "House 9", "In 2015", "9"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("wordpiece")
    write_wordpiece(root / "bert")
    lines = [
        {"id": str(number), "context": f"{CONTEXT_TEXT} {number // 8}", "question": f"Who {number}?",
         "answers": {"text": [text], "answer_start": [CONTEXT_TEXT.index(text)]}}
        for number, text in enumerate(ANSWERED * 4)
    ]  # fmt: skip
    lines.append({"id": "none", "context": "The cat lives.", "question": "Where?", "answers": []})
    (root / "squad.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def config_of(root, seq_len=128):
    return Config(
        data=DataConfig(source="qa", paths=(f"{root}/squad.jsonl",), out=f"{root}/out", valid_fraction=0.3,
                        seq_len=seq_len),
        clean=CleanConfig(min_chars=1),
        tokenizer=TokenizerConfig(path=f"{root}/bert"),
        task=TaskConfig(name="extractive_qa", stride=32),
        model=ModelConfig(family="encoder"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def split(root):
    prepare(config_of(root))
    return open_split(config_of(root), "train")


def test_what_was_asked_and_answered_comes_back_to_the_character(root, split):
    tokenizer, seen = Tokenizer.load(root / "out"), set()
    for framing, record in split.documents():
        context, answers = context_of(record, tokenizer), answers_of(record, tokenizer)
        if not answers:
            assert context == "The cat lives."
            continue
        (answer,) = answers
        assert context[answer["start"] :].startswith(answer["text"])
        assert context.startswith(CONTEXT_TEXT)
        first, last = framing._answer(record)
        assert framing.answer_text(record, first, last) == answer["text"]
        seen.add(answer["text"])
    assert len(seen) == len(ANSWERED)


def test_windows_mark_the_answer_in_every_row(root, split):
    tokenizer = Tokenizer.load(root / "out")
    for framing, record in split.documents():
        for part in (0,):
            (segment,) = framing.frame(record, part).segments
            flags = np.where(segment.targets_P == IGNORE_INDEX, 0, segment.targets_P)
            (start,), (end,) = (np.flatnonzero(flags & flag) for flag in (START, END))
            answers = answers_of(record, tokenizer)
            assert (start > 0) == bool(answers)
            said = tokenizer.decode(segment.tokens_P[start : end + 1].tolist())
            if answers:
                bare = answers[0]["text"].lower().replace("é", "e").replace("ë", "e").replace("ö", "o")
                assert said.replace(" ", "") == bare.replace(" ", "")


class Oracle(nn.Module):
    """Points to what the records say."""

    def __init__(self, documents):
        super().__init__()
        self.places = {}
        for framing, record in documents:
            (segment,) = framing.frame(record, 0).segments
            self.places[tuple(segment.tokens_P.tolist())] = segment.targets_P

    def forward(self, tokens_BT, positions_BT, segments_BT):
        logits_BT2 = torch.zeros(*tokens_BT.shape, 2)
        for row, ids in enumerate(tokens_BT.tolist()):
            flags = self.places[tuple(ids)]
            flags = np.where(flags == IGNORE_INDEX, 0, flags)
            for side, flag in enumerate((START, END)):
                logits_BT2[row, :, side] = torch.from_numpy((flags & flag > 0).astype(np.float32))
        return logits_BT2


def test_a_model_that_is_right_is_scored_right(root, split):
    scores = measure_task(
        "extractive_qa", Oracle(list(split.documents())), split, Tokenizer.load(root / "out"), limit=None
    )
    assert scores["exact_match"] == scores["f1"] == 100.0  # "$5.3 million" among them


@pytest.mark.parametrize("lossless", [True, False])
def test_places_of_ids_are_those_of_their_characters(root, lossless):
    tokenizer = byte_tokenizer() if lossless else Tokenizer.load(root / "bert")
    assert tokenizer.lossless == lossless
    record = question_record(np.array(tokenizer.encode("who"), dtype=np.int64), CONTEXT_TEXT, tokenizer)
    assert context_of(record, tokenizer) == CONTEXT_TEXT
    starts_C, ends_C = places_of(record, CONTEXT_TEXT, tokenizer)
    assert starts_C.size == ends_C.size == record[CONTEXT].size
    assert (np.diff(starts_C) >= 0).all()
    assert (np.diff(ends_C) >= 0).all()
    assert (ends_C > starts_C).all()
    framing = AnswerSpans(tokenizer, 256, 16)
    for text in ANSWERED:
        start = CONTEXT_TEXT.index(text)
        held = encode_answers(
            [{CONTEXT: CONTEXT_TEXT, ANSWERS: json.dumps([{"text": text, "start": start}])}], tokenizer
        )
        assert json.loads(document_texts({ANSWERS: held.ids_M}, tokenizer)[ANSWERS])[0]["text"] == text
        first, last = framing._answer({**record, ANSWERS: held.ids_M.astype(np.int64)})
        assert framing.stretch(record, first, last) == (start, start + len(text))


def test_answers_of_another_preparation_are_refused(root):
    tokenizer = Tokenizer.load(root / "bert")
    texts = {"context": "the cat", "question": "who", "answers": '[{"text": "cat", "start": 4}]'}
    old = {name: np.array(tokenizer.encode(text), dtype=np.int64) for name, text in texts.items()}
    with pytest.raises(DataError, match="cannot be read") as caught:
        answers_of(old, tokenizer)
    assert "prepare the dataset again" in caught.value.remedy
    torn = question_record(old["question"], "the cat", tokenizer) | {CONTEXT: old["context"][:1]}
    with pytest.raises(DataError, match="its context has 1 ids, and its text 2"):
        places_of(torn, context_of(torn, tokenizer), tokenizer)
