"""What a served model can do: continue, chat, translate, answer, embed, search; it depends on its family."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from distllm.config.schema_task import TaskConfig
from distllm.data.examples.prompts import Prompt, PromptBuilder
from distllm.data.examples.split import laid_out
from distllm.data.tokenizer import Tokenizer
from distllm.data.tokenizer.chat import PLAIN, Chat
from distllm.errors import ConfigError
from distllm.infer.batches import by_length
from distllm.infer.beam import NO_SEARCH, Search
from distllm.infer.generate import write_texts
from distllm.models.encdec import EncoderDecoder
from distllm.models.encoder import Encoder
from distllm.models.heads import EmbeddingHead, SpanHead, mean_of_text
from distllm.models.init import Model
from distllm.serve.extract import Extractor

_TOGETHER = 32
"""Texts that are embedded in one forward pass."""


class SearchIndex(Protocol):
    """Finds passages; see `distllm.search.index.SearchIndex`."""

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
        prompts: makes its prompts; None: those of a model trained here on plain text.
        index: what `search` looks in; None if the model is served without one.

    Attributes:
        family: of the model.
        extractor: finds answers in texts with an encoder that has a span head; else None.
        chat_stops: texts that end a turn of the assistant.
        answer_stops: texts that end an answer.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        tokenizer: Tokenizer,
        prompts: PromptBuilder | None = None,
        index: SearchIndex | None = None,
    ) -> None:
        self.name, self.model, self.tokenizer, self.index = name, model, tokenizer, index
        self.family = model.shape.family
        self.prompts = prompts or PromptBuilder(tokenizer, self.family, TaskConfig())
        self._chat = Chat(tokenizer, PLAIN)
        # Without a chat template, a model would go on to write the user's next turn.
        ends = self._chat.closing if tokenizer.chat_template else "\nUser:"
        self.chat_stops: Sequence[str] = [ends] if ends else []
        # A model that was not trained to answer would go on to write the next question.
        self.answer_stops: Sequence[str] = ["\n"] if self.prompts.unanswerable is None else []
        self.extractor: Extractor | None = None
        if isinstance(model, Encoder) and isinstance(model.head, SpanHead):
            self.extractor = Extractor(model, tokenizer)

    @property
    def abilities(self) -> list[str]:
        """The endpoints that this model can answer."""
        by_family = {
            "decoder": [
                "completions",
                "chat",
                *(["translate"] if self.prompts.translates else []),
                "answer",
                "embeddings",
            ],
            "encoder_decoder": ["translate"],
            "encoder": ["answer"] if self.extractor is not None else ["embeddings"],
        }
        return [*by_family[self.family], *(["search"] if self.index is not None else [])]

    def require(self, ability: str) -> None:
        """Check that this model can do something.

        Raises:
            ConfigError: it cannot; the remedy names what it can do.
        """
        if ability not in self.abilities:
            raise ConfigError(
                f"{self.name} is {_a(self.family)} and cannot do {ability!r}",
                remedy=f"it can do: {', '.join(self.abilities)}; serve another model for the rest",
            )

    def prompt_ids(self, text: str) -> list[int]:
        """Return the ids of a text as the beginning of a document."""
        return self.prompts.opened(self.tokenizer.encode(text))

    def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the ids of a conversation up to the assistant's next turn, in the model's chat template.

        Raises:
            ConfigError: the template refuses these messages.
        """
        return self._chat.prompt_ids(messages)

    def recent_chat_ids(self, messages: Sequence[Mapping[str, str]], longest: int) -> tuple[list[int], int]:
        """Return the ids of the latest turns that fit, and how many of the oldest turns were left out.

        System messages stay, and the first turn that is kept is a user's, as chat templates require. The
        last question is never left out, even if it alone is too long.

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
        """Return a unit vector for each text: that of the embedding head, else the mean last hidden state."""
        if self.family == "encoder":
            rows = [self.tokenizer.enclosed(ids).tolist() for ids in self.tokenizer.encode_batch(texts)]
        else:
            rows = [self.prompt_ids(text) for text in texts]
        found: list[list[float]] = [[]] * len(rows)
        for places in by_length([len(row) for row in rows], _TOGETHER):
            vectors = self._vectors([rows[place] for place in places]).tolist()
            for place, vector in zip(places, vectors, strict=True):
                found[place] = vector
        return found

    def translate(self, texts: Sequence[str], max_tokens: int, search: Search = NO_SEARCH) -> list[str]:
        """Return what the model writes for each source, framed as in training.

        Raises:
            ConfigError: it was not trained for that, or a source does not fit into its context.
        """
        prompts = [self.prompts.to_translate(text) for text in texts]
        return write_texts(self.model, self.tokenizer, prompts, max_tokens=max_tokens, search=search)

    def question_ids(
        self, question: str, passages: Sequence[Mapping[str, Any]], max_tokens: int
    ) -> list[int]:
        """Return the prompt to answer a question about passages, best first, for a decoder.

        Raises:
            ConfigError: the question does not fit into its context.
        """
        context = "\n".join(str(passage["passage"]) for passage in passages)
        longest = self.model.shape.max_seq_len - max_tokens
        return self.prompts.to_answer(question, context, longest).ids

    def answer_in(self, text: str) -> str:
        """Return the answer in a decoder's text; empty where the decoder says that there is none."""
        for stop in self.answer_stops:
            text = text.partition(stop)[0]
        text = text.strip()
        return "" if text == self.prompts.unanswerable else text

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
        prompt = Prompt(self.question_ids(question, passages, max_tokens))
        (text,) = write_texts(self.model, self.tokenizer, [prompt], max_tokens=max_tokens)
        return self.answer_in(text), passages

    def search(self, query: str, top: int) -> list[dict[str, Any]]:
        """Return the passages of the index that fit a query best."""
        assert self.index is not None, "required before"
        return self.index.search(query, top)

    def _vectors(self, rows: Sequence[Sequence[int]]) -> Tensor:
        model = self.model
        assert not isinstance(model, EncoderDecoder), "required before"
        kept = [[np.array(ids[: model.shape.max_seq_len])] for ids in rows]
        arrays = laid_out(kept, max(ids.size for (ids,) in kept), self.tokenizer.eot_id)
        device = next(model.parameters()).device
        tokens_NT, positions_NT, segments_NT = (torch.from_numpy(array).to(device) for array in arrays)
        if isinstance(model, Encoder) and isinstance(model.head, EmbeddingHead):
            vectors_NC: Tensor = model(tokens_NT, positions_NT, segments_NT)
            return vectors_NC.float()
        stack = model.encoder if isinstance(model, Encoder) else model.decoder
        states_NTC = stack(model.embed_tokens(tokens_NT, positions_NT), positions_NT, segments_NT)
        return torch.nn.functional.normalize(mean_of_text(states_NTC, segments_NT).float(), dim=1)


def _a(family: str) -> str:
    return {"decoder": "a decoder", "encoder": "an encoder", "encoder_decoder": "an encoder-decoder"}[family]
