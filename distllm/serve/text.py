"""The text of an answer whose ids come one by one."""

from __future__ import annotations

from distllm.data.tokenizer import Tokenizer

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Decodes ids as they come, at a cost that does not grow with the answer.

    A few ids are decoded again with each new one: what a decoder writes for an id may depend on the id
    before it, and a character may take several ids.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._text = ""
        self._context: list[int] = []
        self._waiting: list[int] = []

    def add(self, id_: int) -> str:
        """Append an id; return the whole text, which equals the decoded list of all ids."""
        self._waiting.append(id_)
        before = self._tokenizer.decode(self._context)
        after = self._tokenizer.decode([*self._context, *self._waiting])[len(before) :]
        if after.endswith(_UNFINISHED):
            return self._text + after
        self._text += after
        self._context, self._waiting = self._waiting, []
        return self._text
