"""How a trained model is asked: in the frames that its examples had in training, up to where it speaks."""

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
class Asked:
    """What a model is given: the ids that its text begins with; an encoder-decoder's source, else None."""

    prompt: list[int]
    source: list[int] | None = None


class Asking:
    """Frames what a user asks.

    Args:
        tokenizer: of the model.
        family: of the model: decoder or encoder_decoder.
        task: what it was trained to do; of a model from elsewhere, the defaults.
        begin: what the decoder begins with; the end of text, as all that is trained here.

    Attributes:
        begin: see above.
    """

    def __init__(
        self, tokenizer: Tokenizer, family: str, task: TaskConfig, begin: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self.begin = list(begin) or [tokenizer.eot_id]
        self._reads = family == "encoder_decoder"
        self._task = task

    @property
    def translates(self) -> bool:
        """Whether the model was trained to write a target for a source."""
        return self._reads or self._task.name == "seq2seq"

    @property
    def unanswerable(self) -> str | None:
        """What the model says where there is no answer; None if it was not trained to answer."""
        return self._task.unanswerable if self._task.name == "instruct" else None

    def to_continue(self, text: str) -> Asked:
        """Return a text as the beginning of a document or, for an encoder-decoder, as its source."""
        ids = self._tokenizer.encode(text)
        return self._source(ids) if self._reads else Asked([*self.begin, *ids])

    def to_translate(self, text: str) -> Asked:
        """Return a source as the model met them in training.

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
        return self._source(ids) if self._reads else self._framed(self._task.prompt, {SOURCE: ids})

    def to_answer(self, question: str, context: str, longest: int) -> Asked:
        """Return a question about a text, of which the end is left out where ``longest`` ids do not hold it.

        Raises:
            ConfigError: the question alone is longer.
        """
        fields = {CONTEXT: self._tokenizer.encode(context), QUESTION: self._tokenizer.encode(question)}
        whole = self._framed(self._task.question_prompt, fields)
        excess = len(whole.prompt) - longest
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

    def _source(self, ids: list[int]) -> Asked:
        return Asked(self.begin, [*ids, self._tokenizer.eot_id])

    def _framed(self, template: str, fields: Mapping[str, list[int]]) -> Asked:
        parts = parse_template(template, tuple(fields), self._tokenizer)
        record = {name: np.array(ids, dtype=np.int64) for name, ids in fields.items()}
        return Asked([*self.begin, *render(parts, record).tolist()])
