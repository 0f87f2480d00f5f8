"""What a served model can do, by its family: continue, chat, translate, answer, embed, search."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distllm.data.tokenizer import Tokenizer
from distllm.errors import ConfigError
from distllm.infer.generate import generate_rows
from distllm.models.heads import SpanHead
from distllm.serve.extract import Extractor

_FALLBACK_ROLES = {"system": "", "user": "User: ", "assistant": "Assistant: "}


class Backend:
    """A model and its tokenizer.

    Args:
        name: what clients call the model.
        model: in evaluation mode.
        tokenizer: of the model.
        index: answers ``search(query, top)`` with what it finds, each a mapping with ``title``, ``score``,
            ``snippet``, ``matches`` and the whole ``passage``; or None.
    """

    def __init__(self, name: str, model: Any, tokenizer: Tokenizer, index: Any = None) -> None:
        self.name, self.model, self.tokenizer, self.index = name, model, tokenizer, index
        self.family: str = model.shape.family
        self.extractor: Extractor | None = None
        if self.family == "encoder" and isinstance(model.head, SpanHead):
            self.extractor = Extractor(model, tokenizer)

    @property
    def abilities(self) -> list[str]:
        """The endpoints that this model can answer."""
        by_family = {
            "decoder": ["completions", "chat", "answer", "embeddings"],
            "encoder_decoder": ["translate"],
            "encoder": ["answer"] if self.extractor is not None else ["embeddings"],
        }
        return [*by_family[self.family], *(["search"] if self.index is not None else [])]

    def require(self, ability: str) -> None:
        """Refuse what this model cannot do.

        Raises:
            ConfigError: naming what it can.
        """
        if ability not in self.abilities:
            raise ConfigError(
                f"{self.name} is {_a(self.family)} and cannot do {ability!r}",
                remedy=f"it can do: {', '.join(self.abilities)}; serve another model for the rest",
            )

    def prompt_ids(self, text: str) -> list[int]:
        """Return a text as the beginning of a document."""
        return [self.tokenizer.eot_id, *self.tokenizer.encode(text)]

    def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return a conversation up to where the assistant speaks, in the model's own template.

        Raises:
            ConfigError: the template refuses these messages.
        """
        return self.prompt_ids(render_chat(self.tokenizer.chat_template, messages))

    def recent_chat_ids(self, messages: Sequence[Mapping[str, str]], longest: int) -> tuple[list[int], int]:
        """Return the end of a conversation that fits, and how many of its oldest turns were left out.

        What the system says stays, and a user speaks first, as chat templates demand. The last question
        is never left out: where it alone is too long, it is returned all the same.

        Args:
            messages: the whole conversation.
            longest: tokens the prompt may have.

        Raises:
            ConfigError: the template refuses these messages.
        """
        system = [message for message in messages if message["role"] == "system"]
        turns = [message for message in messages if message["role"] != "system"]
        begins = [0, *(at for at, turn in enumerate(turns) if at and turn["role"] == "user")]

        def fits(begin: int) -> bool:
            return len(self.chat_ids([*system, *turns[begin:]])) <= longest

        begin = begins[bisect_left(begins[:-1], True, key=fits)]
        return self.chat_ids([*system, *turns[begin:]]), begin

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return a unit vector of each text: an encoder's own, else the mean of the last hidden states."""
        if self.family != "encoder":
            return [self._vector(self.prompt_ids(text)).tolist() for text in texts]
        encoded = self.tokenizer.encode_batch(texts)
        return [self._vector(self.tokenizer.enclosed(ids).tolist()).tolist() for ids in encoded]

    def translate(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """Return the likeliest translation of each text by an encoder-decoder, token by token.

        Sources are framed as in training, and cut where they are longer than the model's context.
        """
        eot, context = self.tokenizer.eot_id, self.model.shape.max_seq_len
        rows = generate_rows(
            self.model,
            [[eot]] * len(texts),
            [[*self.tokenizer.encode(text)[: context - 1], eot] for text in texts],
            vocab_size=self.tokenizer.vocab_size,
            eot_id=eot,
            max_tokens=max_tokens,
        )
        return [self.tokenizer.decode(ids) for ids in rows]

    def search(self, query: str, top: int) -> list[dict[str, Any]]:
        """Return the passages of the index that fit a query best."""
        found: list[dict[str, Any]] = self.index.search(query, top)
        return found

    def _vector(self, ids: Sequence[int]) -> Tensor:
        device = next(self.model.parameters()).device
        kept = list(ids)[: self.model.shape.max_seq_len]
        tokens_1T = torch.tensor([kept], device=device)
        positions_1T = torch.arange(len(kept), device=device)[None]
        states: list[Tensor] = []
        stack = self.model.encoder if self.family == "encoder" else self.model.decoder
        handle = stack.register_forward_hook(lambda _module, _given, states_1TC: states.append(states_1TC))
        try:
            if self.family == "encoder":
                out: Tensor = self.model(tokens_1T, positions_1T)
            else:
                out = self.model(tokens_1T, positions_1T, last_only=True)
        finally:
            handle.remove()
        vector_C = out[0] if out.ndim == 2 else states[0][0].mean(dim=0)
        return torch.nn.functional.normalize(vector_C.float(), dim=0)


def render_chat(template: str | None, messages: Sequence[Mapping[str, str]]) -> str:
    """Return a conversation as the text the assistant goes on from.

    The template of a tokenizer is foreign text: it runs in Jinja's sandbox, which neither reaches
    Python nor changes what it is given.

    Raises:
        ConfigError: the template refuses these messages.
    """
    if template is None:
        turns = [f"{_FALLBACK_ROLES[m['role']]}{m['content']}\n" for m in messages]
        return "".join(turns) + _FALLBACK_ROLES["assistant"].rstrip()
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refuse(reason: str) -> None:
        raise TemplateError(reason)

    try:
        rendered: str = environment.from_string(template).render(
            messages=list(messages), add_generation_prompt=True, raise_exception=refuse
        )
    except TemplateError as error:
        raise ConfigError(
            f"the chat template refuses these messages: {error}",
            where="messages",
            remedy="give the roles in the order that the model was trained on",
        ) from error
    return rendered


def _a(family: str) -> str:
    return {"decoder": "a decoder", "encoder": "an encoder", "encoder_decoder": "an encoder-decoder"}[family]
