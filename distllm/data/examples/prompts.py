"""Prompts for a trained model: the frame of its training examples up to the text that it generates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distllm.config.schema_task import TaskConfig
from distllm.data.examples.answers import CONTEXT, QUESTION
from distllm.data.examples.pairs import SOURCE, parse_template, render
from distllm.data.tokenizer import Tokenizer
from distllm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Prompt:
    """The input of a model.

    Attributes:
        ids: what the decoder's text begins with.
        source: what the encoder of an encoder-decoder reads; None for a decoder.
    """

    ids: list[int]
    source: list[int] | None = None


class PromptBuilder:
    """Makes the prompts of one model.

    Args:
        tokenizer: of the model.
        family: of the model: decoder or encoder_decoder.
        task: what it was trained on; for a model trained elsewhere, the defaults.
        begin: the ids that the decoder begins with; by default the end of text, as in all training here.
            If there are none, a text stands alone, and an empty one is ``tokenizer.opening``.
    """

    def __init__(
        self, tokenizer: Tokenizer, family: str, task: TaskConfig, begin: Sequence[int] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._begin = [tokenizer.eot_id] if begin is None else list(begin)
        self._has_encoder = family == "encoder_decoder"
        self._task = task

    @property
    def translates(self) -> bool:
        """Whether the model was trained to write a target for a source."""
        return self._has_encoder or self._task.name == "seq2seq"

    @property
    def unanswerable(self) -> str | None:
        """What the model writes where there is no answer; None if it was not trained to answer."""
        return self._task.unanswerable if self._task.name == "instruct" else None

    def opened(self, ids: Sequence[int] = ()) -> list[int]:
        """Return a decoder's text, which is never empty: the ids it begins with, then ``ids``."""
        return [*self._begin, *ids] or [self._tokenizer.opening_id]

    def to_continue(self, text: str) -> Prompt:
        """Return the prompt to continue a text; an encoder-decoder reads the text as its source."""
        ids = self._tokenizer.encode(text)
        return self._source(ids) if self._has_encoder else Prompt(self.opened(ids))

    def to_translate(self, text: str) -> Prompt:
        """Return the prompt to write the target of a source.

        Raises:
            ConfigError: the model was not trained on pairs.
        """
        if not self.translates:
            raise ConfigError(
                f"a model of task.name={self._task.name} was not trained to write a target for a source",
                where="task.name",
                remedy="train one with task=seq2seq, or let this one continue a prompt: distllm generate",
            )
        ids = self._tokenizer.encode(text)
        return self._source(ids) if self._has_encoder else self._framed(self._task.prompt, {SOURCE: ids})

    def to_answer(self, question: str, context: str, longest: int) -> Prompt:
        """Return the prompt to answer a question about a text.

        The end of the text is left out where the prompt would have more than ``longest`` ids.

        Raises:
            ConfigError: the question alone has more.
        """
        fields = {CONTEXT: self._tokenizer.encode(context), QUESTION: self._tokenizer.encode(question)}
        whole = self._framed(self._task.question_prompt, fields)
        excess = len(whole.ids) - longest
        if excess <= 0:
            return whole
        kept = len(fields[CONTEXT]) - excess
        if kept < 0:
            raise ConfigError(
                f"the question has {len(fields[QUESTION])} tokens, and the model has no room for it",
                where="question",
                remedy="ask in fewer words",
            )
        return self._framed(self._task.question_prompt, {**fields, CONTEXT: fields[CONTEXT][:kept]})

    def _source(self, ids: list[int]) -> Prompt:
        return Prompt(self.opened(), [*ids, self._tokenizer.eot_id])

    def _framed(self, template: str, fields: Mapping[str, list[int]]) -> Prompt:
        parts = parse_template(template, tuple(fields), self._tokenizer)
        record = {name: np.array(ids, dtype=np.int64) for name, ids in fields.items()}
        return Prompt(self.opened(render(parts, record).tolist()))
