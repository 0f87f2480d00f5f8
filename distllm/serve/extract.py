"""Extractive answers: the part of a text that an encoder with a span head points at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distllm.data.examples.answers import CONTEXT, question_record
from distllm.data.examples.windows import AnswerSpans
from distllm.data.tokenizer import Tokenizer
from distllm.errors import ConfigError
from distllm.evaluate.measures import find_span
from distllm.models.init import Model
from distllm.search.snippets import around


class Extractor:
    """Finds answers in texts of any length, window by window.

    Args:
        model: an encoder with a span head, in evaluation mode.
        tokenizer: of the model.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._longest = model.shape.max_seq_len // 2
        # Windows overlap by half, so that an answer is whole in one of them.
        self._framing = AnswerSpans(tokenizer, model.shape.max_seq_len, max(1, self._longest // 2))

    def answer(
        self, question: str, passages: Sequence[Mapping[str, Any]]
    ) -> tuple[str, list[dict[str, Any]]]:
        """Return the likeliest answer and the passage it is in; both empty where "no answer" is likelier.

        Args:
            question: what is asked.
            passages: each with a ``title`` and a ``passage``, its text.

        Raises:
            ConfigError: the question leaves too little room in a window.
        """
        asked = np.array(self._tokenizer.encode(question), dtype=np.int64)
        if not 0 < asked.size < self._longest:
            raise ConfigError(
                f"the question has {asked.size} tokens, the model has room for {self._longest - 1}",
                remedy="ask in fewer words",
            )
        best, answer, shown = 0.0, "", list[dict[str, Any]]()
        for source in passages:
            text = str(source["passage"])
            record = question_record(asked, text, self._tokenizer)
            if not record[CONTEXT].size:
                continue
            span = find_span(self._model, self._framing, record, self._tokenizer.eot_id)
            if span.margin <= best:
                continue
            begin, end = self._framing.stretch(record, span.first, span.last)
            snippet, matches = around(text, (begin, end))
            best, answer = span.margin, text[begin:end]
            shown = [{"title": source["title"], "score": best, "snippet": snippet, "matches": matches}]
        return answer, shown
