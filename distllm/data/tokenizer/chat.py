"""Conversations as text and as ids, by the Jinja template of a tokenizer.

Training, serving and the exported folder use the same template, so a model is prompted as in
training. Ids are those of ``transformers``' ``apply_chat_template``, with one exception: a special token
written in a message is text, so no message can end its turn or pose as another speaker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from distllm.data.tokenizer.tokenizer import Tokenizer
from distllm.errors import ConfigError, DataError

Message = Mapping[str, str]

MARKS = ("<|im_start|>", "<|im_end|>")
CHATML = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The template of a dataset of conversations whose tokenizer has none."""
PLAIN = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ {'user': 'User: ', 'assistant': 'Assistant: '}.get(message['role'], '') }}"
    "{{ message['content'] + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""How a model is asked that was taught no conversations."""
_HIDDEN = 0x100000  # private use: what a special token that a message spells is called while it is rendered
_PROBE = "distllm"
_GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


class Chat:
    """Renders conversations for a tokenizer.

    Args:
        tokenizer: the tokenizer.
        otherwise: the template if it has none.

    Attributes:
        closing: the text that the model writes to end a message of the assistant; may be empty.
    """

    def __init__(self, tokenizer: Tokenizer, otherwise: str) -> None:
        self._tokenizer = tokenizer
        self._template = tokenizer.chat_template or otherwise
        specials = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, specials)) or "(?!)")
        self._number = {token: number for number, token in enumerate(specials)}
        self._names = specials
        self._tail = self._probed()
        self.closing = self._tail.rstrip() or self._tail

    def render(self, messages: Sequence[Message], *, answer_next: bool) -> str:
        """Return a conversation as text, with ``answer_next`` up to where the assistant speaks.

        Raises:
            ConfigError: the template refuses these messages.
        """
        return self._shown(self._rendered(messages, answer_next=answer_next))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation up to where the assistant speaks.

        Raises:
            ConfigError: the template refuses these messages.
        """
        return self._ids(self._rendered(messages, answer_next=True))

    def taught(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Return the ids of a whole conversation, and which of them the assistant says.

        Raises:
            ConfigError: the template refuses these messages.
            DataError: it renders a turn otherwise once others follow, so that what was said is not there.
        """
        text = self._rendered(messages, answer_next=False)
        ids = self._ids(text)
        said = [False] * len(ids)
        for at, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._rendered(messages[:at], answer_next=True)
            after = self._rendered(messages[: at + 1], answer_next=False)
            end = next((n for n, (a, b) in enumerate(zip(text, after, strict=False)) if a != b), len(after))
            if end < len(after) - len(self._tail) or before != after[: len(before)]:
                raise DataError(
                    f"the chat template renders message {at + 1} otherwise once others follow it",
                    where=f"a conversation that begins {self._shown(text)[:60]!r}",
                    remedy="give a tokenizer.chat_template that renders turn by turn",
                )
            if text[:end].endswith(self._tail):
                end -= len(self._tail) - len(self.closing)
            first, last = len(self._ids(before)), len(self._ids(text[:end]))
            said[first:last] = [True] * (last - first)
        return ids, said

    def _probed(self) -> str:
        """Return the text that follows the content of an assistant's message."""
        asked = {"role": "user", "content": _PROBE}
        try:
            text = self._rendered([asked, {**asked, "role": "assistant"}], answer_next=False)
        except ConfigError:
            return ""  # it wants other roles; messages that it refuses are refused one by one
        return text.rpartition(_PROBE)[2]

    def _rendered(self, messages: Sequence[Message], *, answer_next: bool) -> str:
        hidden = [{**message, "content": self._hide(message["content"])} for message in messages]
        try:
            text: str = _compiled(self._template).render(
                messages=hidden,
                add_generation_prompt=answer_next,
                bos_token=self._tokenizer.opening,
                eos_token=self._tokenizer.ending,
            )
        except Exception as error:  # foreign code: it may fail in any way that Python has
            raise ConfigError(
                f"the chat template refuses these messages: {error}",
                where="messages",
                remedy="give the roles in the order that the model was trained on",
            ) from error
        return text

    def _hide(self, text: str) -> str:
        return self._special.sub(lambda found: chr(_HIDDEN + self._number[found[0]]), text)

    def _shown(self, text: str) -> str:
        names = self._names
        return "".join(
            names[ord(letter) - _HIDDEN] if 0 <= ord(letter) - _HIDDEN < len(names) else letter
            for letter in text
        )

    def _ids(self, text: str) -> list[int]:
        """Return the ids of a rendered text, where only the template's special tokens are special."""
        shown = self._shown(text)
        if shown == text:
            return self._tokenizer.encode_marked(text)
        ids: list[int] = []
        ends = [(0, 0), *(found.span() for found in self._special.finditer(text)), (len(text), len(text))]
        for (_, begin), (end, after) in pairwise(ends):
            ids += self._tokenizer.encode(self._shown(text[begin:end]))
            ids += self._tokenizer.special_ids([text[end:after]]) if after > end else []
        return ids


def _as_condition(found: re.Match[str]) -> str:
    return f"{found[1]}{'endif' if found[2] else 'if true'}{found[3]}"


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    """Return a template in a sandbox without access to Python, which cannot change its arguments.

    Raises:
        ConfigError: it is no Jinja.
    """
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(reason: str) -> None:
        raise TemplateError(reason)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.globals["raise_exception"] = refuse
    try:
        # What stands between {% generation %} and its end is rendered all the same.
        return environment.from_string(_GENERATION.sub(_as_condition, template))
    except TemplateError as error:
        raise ConfigError(
            f"the chat template is no Jinja: {error}",
            where="tokenizer.chat_template",
            remedy="give the template of a model that transformers can chat with",
        ) from error
