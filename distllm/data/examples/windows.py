"""Extractive questions: windows of the context, and the places where an answer starts and ends.

A window is EOT (``[CLS]`` where the tokenizer has one), the question, EOT, a part of the context,
EOT. A long context has several windows, each ``stride`` ids after the one before (Devlin et al. 2019,
section 4.2). The targets of a window are flags: ``CANDIDATE`` where an answer may start or end (the
context, and the first position, which means "no answer here"), plus ``START`` and ``END`` where it does.

Shapes: N documents, W windows, P positions of a window, C ids of a context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from distllm.data.examples.answers import (
    CONTEXT,
    QUESTION,
    answers_of,
    context_of,
    places_of,
)
from distllm.data.examples.framing import Example, Measured, Record, Segment, forgotten
from distllm.data.records import ANSWERS
from distllm.data.tokenizer import Tokenizer
from distllm.errors import DataError

CANDIDATE, START, END = 0, 1, 2
_MARKS = 3


class AnswerSpans:
    """Windows of questions; the position of an answer is given in characters of the context.

    Args:
        tokenizer: of the dataset.
        window: the most positions of a window.
        stride: ids of the context from the start of a window to that of the next.
    """

    fields: tuple[str, ...] = (CONTEXT, QUESTION, ANSWERS)
    one_a_row = False
    has_source = False

    def __init__(self, tokenizer: Tokenizer, window: int, stride: int) -> None:
        self._tokenizer = tokenizer
        self._eot = tokenizer.eot_id
        self._window, self._stride = window, stride

    def measure(self, sizes: Mapping[str, NDArray[np.int64]], read: Callable[[int], Record]) -> Measured:
        """See `Framing`.

        Raises:
            DataError: a question leaves no room for its context.
        """
        room_N = self._window - _MARKS - sizes[QUESTION]
        if (room_N < self._stride).any():
            row = int(np.argmin(room_N))
            raise DataError(
                f"question {row} has {int(sizes[QUESTION][row])} ids; a window of {self._window} leaves "
                f"less than task.stride={self._stride} for its context",
                where="data.seq_len",
                remedy="set a larger data.seq_len or a smaller task.stride",
            )
        beyond_N = np.maximum(0, sizes[CONTEXT] - room_N)
        windows_N = 1 + -(-beyond_N // self._stride)
        row_W = np.repeat(np.arange(windows_N.size), windows_N)
        part_W = np.arange(row_W.size) - np.repeat(np.cumsum(windows_N) - windows_N, windows_N)
        held_W = np.minimum(room_N[row_W], sizes[CONTEXT][row_W] - part_W * self._stride)
        return Measured(row_W, part_W, held_W + _MARKS + sizes[QUESTION][row_W], np.zeros_like(row_W))

    def frame(self, record: Record, part: int) -> Example:
        """See `Framing`."""
        context, question = record[CONTEXT], record[QUESTION]
        first = part * self._stride
        held = context[first : first + self._window - _MARKS - question.size]
        tokens_P = self._tokenizer.enclosed(np.concatenate([question, [self._eot], held]))
        segment = Segment.unscored(tokens_P)
        before = question.size + 2
        segment.targets_P[before : before + held.size] = CANDIDATE
        segment.targets_P[0] = CANDIDATE
        start, end = self._answer(record)
        inside = start is not None and first <= start and end < first + held.size
        places = (before + start - first, before + end - first) if inside and start is not None else (0, 0)
        segment.targets_P[places[0]] += START
        segment.targets_P[places[1]] += END
        return Example((segment,))

    def first_id(self, part: int) -> int:
        """Return which id of the context opens window ``part``."""
        return part * self._stride

    def stretch(self, record: Record, first: int, last: int) -> tuple[int, int]:
        """Return the characters at which the ids ``first`` to ``last`` of a context begin and end.

        Without the spaces around them.
        """
        context = context_of(record, self._tokenizer)
        starts_C, ends_C = places_of(record, context, self._tokenizer)
        begin, end = int(starts_C[first]), int(ends_C[last])
        found = context[begin:end]
        return begin + len(found) - len(found.lstrip()), end - len(found) + len(found.rstrip())

    def answer_text(self, record: Record, first: int, last: int) -> str:
        """Return the text of the ids ``first`` to ``last`` of a context, as it is written there."""
        begin, end = self.stretch(record, first, last)
        return context_of(record, self._tokenizer)[begin:end]

    def _answer(self, record: Record) -> tuple[int | None, int]:
        """Return the first and the last id of the first answer; None if there is none."""
        if forgotten(record, self._eot):
            return None, 0
        answers = [a for a in answers_of(record, self._tokenizer) if a["start"] is not None]
        if not answers:
            return None, 0
        begin = answers[0]["start"]
        end = begin + max(1, len(answers[0]["text"]))
        context = context_of(record, self._tokenizer)
        starts_C, ends_C = places_of(record, context, self._tokenizer)
        # the first id that ends after the answer begins, the last that begins before it ends
        first = int(np.searchsorted(ends_C, begin, side="right"))
        last = int(np.searchsorted(starts_C, end, side="left")) - 1
        return (first, last) if first <= last else (None, 0)
