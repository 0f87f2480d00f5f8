"""What a served model can do, by its family: continue, chat, translate, answer, embed, search."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from distllm.config.schema_task import TaskConfig
from distllm.data.examples.asking import Asked, Asking
from distllm.data.tokenizer import Tokenizer
from distllm.data.tokenizer.chat import PLAIN, Chat
from distllm.errors import ConfigError
from distllm.infer.beam import NO_SEARCH, Search
from distllm.infer.generate import write_texts
from distllm.models.heads import SpanHead
from distllm.serve.extract import Extractor


class SearchIndex(Protocol):
    """What finds passages; see `distllm.search.index.Index`."""

    def search(self, query: str, top: int) -> list[dict[str, Any]]:
        """Return the passages that fit a query best.

        Each has ``title``, ``score``, ``snippet``, ``matches`` and the whole ``passage``.
        """


class Backend:
    """A model and its tokenizer.

    Args:
        name: what clients call the model.
        model: in evaluation mode.
        tokenizer: of the model.
        asking: how it is asked; None as one that was trained here on plain text.
        index: what `search` looks in; None: nothing.

    Attributes:
        extractor: finds answers in texts, of an encoder with a span head; else None.
        chat_stops: texts that end a turn of the assistant.
        answer_stops: texts that end an answer.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Tokenizer,
        asking: Asking | None = None,
        index: SearchIndex | None = None,
    ) -> None:
        self.name, self.model, self.tokenizer, self.index = name, model, tokenizer, index
        self.family: str = model.shape.family
        self.asking = asking or Asking(tokenizer, self.family, TaskConfig())
        self._chat = Chat(tokenizer, PLAIN)
        # Without a template of its own, a model goes on with what it takes the user to say next.
        ends = self._chat.closing if tokenizer.chat_template else "\nUser:"
        self.chat_stops: Sequence[str] = [ends] if ends else []
        # A model that was not trained to answer goes on with the next question.
        self.answer_stops: Sequence[str] = ["\n"] if self.asking.unanswerable is None else []
        self.extractor: Extractor | None = None
        if self.family == "encoder" and isinstance(model.head, SpanHead):
            self.extractor = Extractor(model, tokenizer)

    @property
    def abilities(self) -> list[str]:
        """The endpoints that this model can answer."""
        by_family = {
            "decoder": [
                "completions",
                "chat",
                *(["translate"] if self.asking.translates else []),
                "answer",
                "embeddings",
            ],
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
        return [*self.asking.begin, *self.tokenizer.encode(text)]

    def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return a conversation up to where the assistant speaks, in the model's own template.

        Raises:
            ConfigError: the template refuses these messages.
        """
        return self._chat.prompt_ids(messages)

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

    def translate(self, texts: Sequence[str], max_tokens: int, search: Search = NO_SEARCH) -> list[str]:
        """Return what the model writes for each source, framed as in training.

        Raises:
            ConfigError: it was not trained for that, or a source does not fit into its context.
        """
        asked = [self.asking.to_translate(text) for text in texts]
        return write_texts(self.model, self.tokenizer, asked, max_tokens=max_tokens, search=search)

    def question_ids(
        self, question: str, passages: Sequence[Mapping[str, Any]], max_tokens: int
    ) -> list[int]:
        """Return a question about passages, best first, for a decoder that answers in its own words.

        Raises:
            ConfigError: the question does not fit into its context.
        """
        context = "\n".join(str(passage["passage"]) for passage in passages)
        longest = self.model.shape.max_seq_len - max_tokens
        return self.asking.to_answer(question, context, longest).prompt

    def answer_in(self, text: str) -> str:
        """Return the answer that a decoder wrote; empty where it says that there is none."""
        for stop in self.answer_stops:
            text = text.partition(stop)[0]
        text = text.strip()
        return "" if text == self.asking.unanswerable else text

    def answer(
        self, question: str, passages: Sequence[Mapping[str, Any]], max_tokens: int
    ) -> tuple[str, Sequence[Mapping[str, Any]]]:
        """Return the answer to a question, empty where there is none, and the passages it comes from.

        Args:
            question: what is asked.
            passages: each with ``title``, ``score`` and ``passage``, best first.
            max_tokens: longest answer in a decoder's own words.

        Raises:
            ConfigError: the question does not fit into its context.
        """
        if self.extractor is not None:
            return self.extractor.answer(question, passages)
        asked = Asked(self.question_ids(question, passages, max_tokens))
        (text,) = write_texts(self.model, self.tokenizer, [asked], max_tokens=max_tokens)
        return self.answer_in(text), passages

    def search(self, query: str, top: int) -> list[dict[str, Any]]:
        """Return the passages of the index that fit a query best."""
        assert self.index is not None, "required before"
        return self.index.search(query, top)

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


def _a(family: str) -> str:
    return {"decoder": "a decoder", "encoder": "an encoder", "encoder_decoder": "an encoder-decoder"}[family]
