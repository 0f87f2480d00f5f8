"""Requests of the server, in the form of OpenAI's API where there is one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_INPUTS = 64
MAX_MESSAGES = 200
MAX_CHARACTERS = 100_000

Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]
Stop = str | Annotated[list[str], Field(max_length=4)] | None


_NOT_HERE: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "best_of": (1,),
    "suffix": ("",),
}
"""Fields that would change an answer and are not supported, with the values that change nothing."""


class Body(BaseModel):
    """Base of all requests. Unknown fields, such as ``user``, are ignored."""

    model_config = ConfigDict(extra="ignore")
    model: str | None = None


class StreamOptions(BaseModel):
    """Options of a stream: ``include_usage`` ends it with the counts of tokens."""

    include_usage: bool = False


class Sampled(Body):
    """How an answer is drawn."""

    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0.0, le=10.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    seed: int | None = None
    stop: Stop = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Literal[1] = 1

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_here(cls, body: Any) -> Any:
        asked = body if isinstance(body, dict) else {}
        for name, nothing in _NOT_HERE.items():
            if asked.get(name) is not None and asked[name] not in nothing:
                raise ValueError(f"{name} is not supported by this server; leave it out")
        return {name: value for name, value in asked.items() if value is not None} or body


class CompletionBody(Sampled):
    """``POST /v1/completions``."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)] = ""
    echo: bool = False


class Part(BaseModel):
    """A piece of a message; only text is understood."""

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part]

    def plain(self) -> dict[str, str]:
        """Return role and text, as chat templates take them."""
        text = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatBody(Sampled):
    """``POST /v1/chat/completions``.

    ``truncation`` is that of OpenAI's Responses API: a conversation that does not fit is refused
    (``disabled``), or its oldest turns are left out and counted in the header ``x-turns-left-out``.
    """

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    truncation: Literal["auto", "disabled"] = "disabled"


class EmbeddingBody(Body):
    """``POST /v1/embeddings``."""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] = "float"


class TranslateBody(Body):
    """``POST /v1/translate``."""

    text: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
    max_tokens: int = Field(256, ge=1)


class AnswerBody(Body):
    """``POST /v1/answer``."""

    question: Text
    context: Text = ""
    max_tokens: int = Field(64, ge=1)


class SearchBody(Body):
    """``POST /v1/search``."""

    query: Text
    top: int = Field(10, ge=1, le=100)


def usage(prompt_tokens: int, new_tokens: int = 0) -> dict[str, Any]:
    """Return the token counts of an answer."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
    }
