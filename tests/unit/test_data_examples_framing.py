"""Framings of questions, conversations and preferences, and what is refused before step 1."""

import json
from dataclasses import replace

import numpy as np
import pytest
from prepared import byte_tokenizer, write_sources

from distllm.config.schema import Config, DataConfig, TaskConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.batch import IGNORE_INDEX
from distllm.data.examples.windows import END, START
from distllm.data.open import open_split
from distllm.data.shards import forget
from distllm.data.tokenizer import Tokenizer
from distllm.errors import ConfigError, DataError

TOKENIZER = byte_tokenizer()
encode, decode = TOKENIZER.encode, TOKENIZER.decode
PAIR, QA = ("source", "target"), ("context", "question", "answers")


def config_of(root, task, seq_len=64, **data):
    return Config(
        data=DataConfig(out=str(root), seq_len=seq_len, **data), task=TaskConfig(name=task, stride=8)
    )


def write(root, fields, documents):
    held = [tuple(encode(text) for text in document) for document in documents]
    write_sources(root, {"some": {"train": held, "valid": held[:1]}}, fields={"some": fields})
    return root


def only_row(root, task, **more):
    return open_split(config_of(root, task, **more), "train").batch(np.array([0]), np.array([0]))


def answer_of(batch, segment):
    here = batch.segments_BT[0] == segment
    flags, ids = batch.targets_BT[0][here], batch.tokens_BT[0][here]
    marked = [np.flatnonzero((flags != IGNORE_INDEX) & (flags & flag > 0)) for flag in (START, END)]
    assert [places.size for places in marked] == [1, 1]
    first, last = (int(places[0]) for places in marked)
    return first, decode(ids[first : last + 1].tolist())


@pytest.mark.parametrize("context", ["the cat sat on the mat", "ein Kätzchen saß auf der mat da"])
def test_answers_are_found_by_their_characters(tmp_path, context):
    answers = json.dumps([{"text": "mat", "start": context.index("mat")}], ensure_ascii=False)
    batch = only_row(write(tmp_path / "d", QA, [(context, "who?", answers)]), "extractive_qa")
    assert answer_of(batch, 0)[1] == "mat"


def test_windows_overlap_by_the_stride_and_a_window_without_the_answer_points_to_its_first_position(tmp_path):
    context = "one two three four five six seven"
    answers = json.dumps([{"text": "six", "start": context.index("six")}])
    root = write(tmp_path / "d", QA, [(context, "who?", answers)])
    split = open_split(config_of(root, "extractive_qa", seq_len=24), "train")
    assert split.num_examples == 3  # 17 of 33 characters at a time, 8 further each time
    batches = [split.batch(np.array([row]), np.array([row])) for row in range(3)]
    found = [answer_of(batch, 0) for batch in batches]
    assert [text for place, text in found if place] == ["six"]
    assert [place for place, _ in found[:2]] == [0, 0]
    again = [decode(batch.tokens_BT[0].tolist()) for batch in batches]
    assert all("who?" in text for text in again)


def test_a_question_without_an_answer_points_to_the_first_position(tmp_path):
    batch = only_row(write(tmp_path / "d", QA, [("the cat", "who?", "[]")]), "extractive_qa")
    assert answer_of(batch, 0)[0] == 0


def test_a_generative_answer_is_all_that_carries_loss(tmp_path):
    answers = json.dumps([{"text": "on the mat", "start": 8}])
    root = write(tmp_path / "d", QA, [("the cat on the mat", "where?", answers), ("it", "who?", "[]")])
    split = open_split(config_of(root, "instruct", seq_len=96), "train")
    batch = split.batch(np.array([0]), np.array([0]))
    scored = batch.targets_BT[0][batch.targets_BT[0] != IGNORE_INDEX].tolist()
    assert decode(scored) == "on the mat<|endoftext|>no answer<|endoftext|>"
    assert "the cat on the mat\nQuestion: where?\nAnswer: on the mat" in decode(batch.tokens_BT[0].tolist())


def test_only_what_the_assistant_says_carries_loss(tmp_path):
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "bye"},
        {"role": "assistant", "content": "so long"},
    ]
    batch = only_row(write(tmp_path / "d", ("messages",), [(json.dumps(talk),)]), "instruct", seq_len=256)
    scored = batch.targets_BT[0][batch.targets_BT[0] != IGNORE_INDEX].tolist()
    assert decode(scored) == "hello<|im_end|>so long<|im_end|>"
    assert "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello" in decode(
        batch.tokens_BT[0].tolist()
    )


def test_marks_of_a_conversation_are_special_tokens_where_there_are_some(tmp_path):
    from distllm.data.examples.dialogue import Conversations

    tokenizer = Tokenizer.train(
        [], TokenizerConfig(vocab_size=260, special_tokens=("<|im_start|>", "<|im_end|>"))
    )
    talk = json.dumps([{"role": "assistant", "content": "<|im_end|>"}])
    record = {"messages": np.array(tokenizer.encode(talk))}
    (segment,) = Conversations(tokenizer).frame(record, 0).segments
    marks = tokenizer.special_ids(["<|im_start|>", "<|im_end|>"])
    assert segment.tokens_P[1] == marks[0]
    assert list(segment.targets_P).count(marks[1]) == 1  # text that spells the mark does not end the message
    assert segment.targets_P[segment.targets_P != IGNORE_INDEX][-1] == marks[1]


def test_both_answers_of_a_preference_stand_in_one_row(tmp_path):
    fields = ("prompt", "chosen", "rejected")
    batch = only_row(write(tmp_path / "d", fields, [("say hi ", "hi", "no")] * 2), "dpo", seq_len=48)
    texts = [decode(batch.tokens_BT[0][batch.segments_BT[0] == number].tolist()) for number in range(4)]
    assert texts == ["<|endoftext|>say hi hi", "<|endoftext|>say hi no"] * 2
    goals = [batch.targets_BT[0][batch.segments_BT[0] == number] for number in range(4)]
    assert [decode(goal[goal != IGNORE_INDEX].tolist()) for goal in goals] == [
        "hi<|endoftext|>",
        "no<|endoftext|>",
    ] * 2


def test_a_pair_has_a_row_of_its_own_for_search(tmp_path):
    root = write(tmp_path / "d", PAIR, [("cat", "the cat sat"), ("dog", "the dog ran")])
    split = open_split(config_of(root, "contrastive", seq_len=16, source_len=8), "train")
    batch = split.batch(np.arange(2), np.arange(2))
    assert split.num_samples == 2
    assert [(row != IGNORE_INDEX).sum() for row in batch.targets_BT] == [1, 1]
    assert decode(batch.source.tokens_BS[1][batch.source.segments_BS[1] == 0].tolist()[1:-1]) == "dog"


@pytest.mark.parametrize(
    ("task", "fields", "document", "words"),
    [
        (
            "seq2seq",
            PAIR,
            ("a" * 99, "b"),
            ["document 'train-0'", "105 tokens", "of 64", "data.too_long=drop"],
        ),
        ("seq2seq", PAIR, ("", "b"), ["the field source of document 'train-0' is empty"]),
        ("seq2seq", QA, ("a", "b", "[]"), ["fields source, target", "context, question, answers"]),
        ("extractive_qa", PAIR, ("a", "b"), ["context, question, answers", "source, target"]),
        ("extractive_qa", QA, ("a", "w" * 60, "[]"), ["question 0 has 60 ids", "task.stride=8"]),
        ("instruct", QA, ("a", "b", "none"), ["its answers are not JSON", "prepare the dataset again"]),
        ("causal_lm", PAIR, ("a", "b"), ["source, target, not text", "task=seq2seq"]),
    ],
)
def test_documents_that_do_not_fit_are_named_when_the_split_is_opened(
    tmp_path, task, fields, document, words
):
    root = write(tmp_path / "d", fields, [document])
    with pytest.raises(DataError) as raised:
        open_split(config_of(root, task), "train")
    told = f"{raised.value} {raised.value.where} {raised.value.remedy}"
    assert all(word in told for word in words), told


def test_every_example_may_have_a_row_of_its_own(tmp_path):
    root = write(tmp_path / "d", PAIR, [("cat", "sat"), ("dog", "ran"), ("hen", "sang")])
    packed, single = (
        open_split(config_of(root, "seq2seq", packing=packing), "train") for packing in ("window", "single")
    )
    assert (packed.num_samples, single.num_samples) == (1, 3)
    for number, said in enumerate(("sat", "ran", "sang")):
        batch = single.batch(np.array([number]), np.array([0]))
        assert int(batch.segments_BT.max()) == 1  # one example, and padding
        assert said in decode(batch.tokens_BT[0].tolist())


def test_too_long_examples_can_be_dropped_or_cut(tmp_path):
    root = write(tmp_path / "d", PAIR, [("a", "b"), ("c", "d" * 90)])
    dropped = open_split(config_of(root, "seq2seq", seq_len=32, too_long="drop"), "train")
    assert (dropped.num_examples, dropped.dropped) == (1, 1)
    cut = open_split(config_of(root, "seq2seq", seq_len=32, too_long="cut"), "train")
    last = cut.batch(np.array([cut.num_samples - 1]), np.array([0]))
    assert cut.num_examples == 2
    assert decode(last.tokens_BT[0].tolist()).endswith("d" * 20)


def test_an_id_outside_the_vocabulary_is_found_when_the_split_is_opened(tmp_path):
    root = tmp_path / "d"
    held = [([1, 2], [3, 300])]
    write_sources(root, {"some": {"train": held, "valid": held}}, fields={"some": PAIR})
    with pytest.raises(DataError, match="the id 300, outside the vocabulary of 257"):
        open_split(config_of(root, "seq2seq"), "train")


def test_a_prompt_must_name_the_source(tmp_path):
    root = write(tmp_path / "d", PAIR, [("a", "b")])
    config = config_of(root, "seq2seq")
    config = replace(config, task=replace(config.task, prompt="Translate: {text}"))
    with pytest.raises(ConfigError, match="names text") as raised:
        open_split(config, "train")
    assert "{source}" in raised.value.remedy


@pytest.mark.parametrize("kind", ["pairs", "chat"])
def test_a_forgotten_document_carries_no_loss(tmp_path, kind):
    talk = json.dumps([{"role": "assistant", "content": "hello"}])
    fields, documents, task = (
        (PAIR, [("ab", "cd"), ("ef", "gh")], "seq2seq")
        if kind == "pairs"
        else (("messages",), [(talk,), (talk,)], "instruct")
    )
    root = write(tmp_path / "d", fields, documents)
    before = only_row(root, task, seq_len=160)
    forget(root, ["train-0"])
    after = only_row(root, task, seq_len=160)
    scored = [int((batch.targets_BT != IGNORE_INDEX).sum()) for batch in (before, after)]
    assert scored[1] == scored[0] // 2
