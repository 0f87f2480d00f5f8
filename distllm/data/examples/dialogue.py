"""Framings of documents that hold JSON: conversations, and questions with generated answers.

Their ids are decoded, rendered and encoded again: once to know the length, and again for each use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distllm.data.batch import IGNORE_INDEX
from distllm.data.examples.answers import CONTEXT, QUESTION, answers_of
from distllm.data.examples.framing import Example, Ids, Measured, Record, Segment, forgotten
from distllm.data.examples.pairs import parse_template, render
from distllm.data.records import ANSWERS
from distllm.data.tokenizer import Tokenizer
from distllm.data.tokenizer.chat import CHATML, Chat
from distllm.errors import DataError

MESSAGES = "messages"


def messages_of(record: Record, tokenizer: Tokenizer) -> list[Any]:
    """Return the messages of a conversation.

    Raises:
        DataError: the record holds none.
    """
    text = tokenizer.decode(record[MESSAGES].tolist())
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DataError(
            f"the messages of a conversation are not JSON: {error}",
            where=f"a document that begins {text[:60]!r}",
            remedy="prepare the dataset again with data.source=chat",
        ) from error
    return list(found)


class _Rendered:
    """Measures documents by framing them."""

    fields: tuple[str, ...]
    one_a_row = False
    has_source = False

    def measure(self, sizes: Mapping[str, NDArray[np.int64]], read: Callable[[int], Record]) -> Measured:
        """See `Framing`."""
        count = next(iter(sizes.values())).size
        tokens = [self.frame(read(row), 0).segments[0].tokens_P.size for row in range(count)]
        return Measured.one_each(np.array(tokens, dtype=np.int64))

    def frame(self, record: Record, part: int) -> Example:
        """See `Framing`."""
        raise NotImplementedError


class Conversations(_Rendered):
    """A conversation in the tokenizer's chat template; the loss is on the assistant's messages.

    That includes the token that ends a message. Without a template it is ChatML; its marks are written
    as text if the tokenizer does not have them as special tokens.

    Args:
        tokenizer: of the dataset.
    """

    fields: tuple[str, ...] = (MESSAGES,)

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._chat = Chat(tokenizer, CHATML)

    def frame(self, record: Record, part: int) -> Example:
        """See `Framing`."""
        if forgotten(record, self._tokenizer.eot_id):
            return Example((Segment.unscored([self._tokenizer.eot_id]),))
        ids, said = self._chat.taught(messages_of(record, self._tokenizer))
        segment = Segment.predicting(ids, 1)
        segment.targets_P[~np.array(said[1:])] = IGNORE_INDEX
        return Example((segment,))


class AnsweredQuestions(_Rendered):
    """One text: EOT, the prompt with context and question, the first answer, EOT; loss on the last two.

    Args:
        tokenizer: of the dataset.
        prompt: what stands before the answer, with ``{context}`` and ``{question}`` in it.
        unanswerable: what is answered where a document has no answer.
        begin: what stands in place of the first EOT.

    Attributes:
        unanswerable: see above.
    """

    fields: tuple[str, ...] = (CONTEXT, QUESTION, ANSWERS)

    def __init__(
        self, tokenizer: Tokenizer, prompt: str, unanswerable: str, begin: int | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._eot = tokenizer.eot_id
        self._begin = self._eot if begin is None else begin
        self._prompt = parse_template(prompt, (CONTEXT, QUESTION), tokenizer)
        self.unanswerable = unanswerable

    def answer(self, record: Record) -> Ids:
        """Return the ids of the answer that is trained on."""
        answers = answers_of(record, self._tokenizer)
        text = answers[0]["text"] if answers else self.unanswerable
        return np.array(self._tokenizer.encode(text), dtype=np.int64)

    def frame(self, record: Record, part: int) -> Example:
        """See `Framing`."""
        if forgotten(record, self._eot):
            return Example((Segment.unscored([self._eot]),))
        asked = render(self._prompt, record)
        whole = np.concatenate([[self._begin], asked, self.answer(record), [self._eot]])
        return Example((Segment.predicting(whole, 1 + asked.size),))
