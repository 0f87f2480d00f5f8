"""A model is asked as it was taught: each frame is that of training, up to where the model speaks."""

import json

import numpy as np
import pytest

from distllm.config.schema_task import TaskConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.batch import IGNORE_INDEX
from distllm.data.examples.dialogue import AnsweredQuestions
from distllm.data.examples.pairs import DecoderPairs, EncoderDecoderPairs
from distllm.data.examples.prompts import PromptBuilder
from distllm.data.tokenizer import Tokenizer
from distllm.errors import ConfigError


@pytest.fixture(scope="module")
def words():
    return Tokenizer.train(["the cat sat on the mat"], TokenizerConfig(vocab_size=270))


def record(words, **texts):
    return {name: np.array(words.encode(text)) for name, text in texts.items()}


def before_the_answer(example):
    (segment,) = example.segments
    return segment.tokens_P[: np.flatnonzero(segment.targets_P != IGNORE_INDEX)[0] + 1].tolist()


def test_a_source_is_asked_as_it_was_taught(words):
    taught = record(words, source="the cat", target="le chat")
    task = TaskConfig(name="seq2seq", prompt="{source} in French: ")
    decoder = PromptBuilder(words, "decoder", task).to_translate("the cat")
    assert decoder.ids == before_the_answer(DecoderPairs(words, task.prompt).frame(taught, 0))
    assert decoder.source is None
    example = EncoderDecoderPairs(words).frame(taught, 0)
    for ask in ("to_translate", "to_continue"):
        asked = getattr(PromptBuilder(words, "encoder_decoder", task), ask)("the cat")
        assert asked.source == example.sources[0].tolist()
        assert asked.ids == before_the_answer(example)


def test_a_question_is_asked_as_it_was_taught(words):
    task = TaskConfig(name="instruct", question_prompt="Read: {context} Then say {question} ")
    framing = AnsweredQuestions(words, task.question_prompt, task.unanswerable)
    answers = json.dumps([{"text": "the mat", "start": 0}])
    taught = record(words, context="the cat sat", question="where?", answers=answers)
    asked = PromptBuilder(words, "decoder", task).to_answer("where?", "the cat sat", longest=500)
    assert asked.ids == before_the_answer(framing.frame(taught, 0))


def test_of_a_context_that_is_too_long_the_end_is_left_out_and_the_question_never(words):
    prompts = PromptBuilder(words, "decoder", TaskConfig(name="instruct"))
    short = prompts.to_answer("where?", "", longest=500)
    cut = prompts.to_answer("where?", "abcdefgh" * 9, longest=len(short.ids) + 3)
    assert words.decode(cut.ids) == words.decode(short.ids).replace("<|endoftext|>", "<|endoftext|>abc")
    with pytest.raises(ConfigError, match="no room for it"):
        prompts.to_answer("where?", "the cat", longest=len(short.ids) - 1)


def test_what_was_not_taught_is_refused_and_known(words):
    plain = PromptBuilder(words, "decoder", TaskConfig())
    assert not plain.translates
    assert plain.unanswerable is None
    assert PromptBuilder(words, "decoder", TaskConfig(name="instruct")).unanswerable == "no answer"
    with pytest.raises(ConfigError, match="not trained to write a target"):
        plain.to_translate("x")
