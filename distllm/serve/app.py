"""The HTTP application: OpenAI's endpoints, our own, and a web page."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from distllm.errors import DistllmError
from distllm.serve.answers import (
    Pending,
    all_or_none,
    on_model_thread,
    refuse_failed,
    sampling_of,
    tokens_wanted,
)
from distllm.serve.backend import Backend
from distllm.serve.guard import Refused
from distllm.serve.sampling import Sampling
from distllm.serve.scheduler import Scheduler
from distllm.serve.schema import (
    AnswerBody,
    Body,
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    Sampled,
    SearchBody,
    TranslateBody,
    usage,
)

TURNS_LEFT_OUT = "x-turns-left-out"
_REASONS = {"stop": "stop", "length": "length"}


def build_app(backend: Backend, scheduler: Scheduler, *, seconds: float) -> FastAPI:
    """Return the application.

    Args:
        backend: the model.
        scheduler: owns the model; closed with the application.
        seconds: longest time of one request.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        scheduler.close()

    app = FastAPI(
        title="distllm", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json"
    )
    _errors(app)
    _facts(app, backend, scheduler)
    _completions(app, backend, scheduler, seconds)
    _chat(app, backend, scheduler, seconds)
    _embeddings(app, backend, scheduler, seconds)
    _others(app, backend, scheduler, seconds)
    return app


def page() -> tuple[str, str]:
    """Return the web page and a Content-Security-Policy that allows its own script and no other."""
    text = (files("distllm.serve") / "static" / "page.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return text, (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _errors(app: FastAPI) -> None:
    """Give every error the JSON form of OpenAI's API."""

    @app.exception_handler(DistllmError)
    async def ours(_request: Request, error: DistllmError) -> Response:
        return _error(
            400 if error.exit_code == 64 else 500, f"{error.cause}; {error.remedy or ''}".rstrip("; ")
        )

    @app.exception_handler(Refused)
    async def refused(_request: Request, error: Refused) -> Response:
        return _error(error.status, str(error), error.code)

    @app.exception_handler(RequestValidationError)
    async def wrong(_request: Request, error: RequestValidationError) -> Response:
        return _error(400, "; ".join(map(_describe, error.errors())))

    @app.exception_handler(HTTPException)
    async def nowhere(request: Request, error: HTTPException) -> Response:
        asked = f"{request.method} {request.url.path}"
        return _error(error.status_code, f"{asked}: {error.detail}; GET /v1/openapi.json lists what there is")


def _describe(problem: Mapping[str, Any]) -> str:
    """Return ``messages.0.role: Input should be ...``, without a place if the whole body is meant."""
    place = ".".join(map(str, problem["loc"][1:]))
    if problem["type"] == "json_invalid":
        return f"the body is no JSON, at character {place}: {problem['ctx']['error']}"
    if not place and isinstance(problem["input"], bytes):
        return "the body is not read as JSON: send it with the header Content-Type: application/json"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _error(status: int, message: str, code: str | None = None) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    retry = {"retry-after": "1"} if status in (429, 503) else {}
    return JSONResponse({"error": {"message": message, "type": kind, "code": code}}, status, headers=retry)


def _facts(app: FastAPI, backend: Backend, scheduler: Scheduler) -> None:
    started = int(time.time())

    @app.get("/", response_class=HTMLResponse)
    async def index() -> str:
        return page()[0]

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", **scheduler.load}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [await model(backend.name)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != backend.name:
            raise _unknown(name, backend)
        own = {"created": started, "owned_by": "distllm", "abilities": backend.abilities}
        return {"id": name, "object": "model", **own}


def _completions(app: FastAPI, backend: Backend, scheduler: Scheduler, seconds: float) -> None:
    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionBody) -> Response | dict[str, Any]:
        _require(backend, body, "completions")
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        all_ids = [backend.prompt_ids(prompt) for prompt in prompts]
        frame = _frame("cmpl", "text_completion", backend)
        with all_or_none() as started:
            for ids in all_ids:
                sampling = sampling_of(body, scheduler.context - len(ids))
                started.append(Pending(scheduler, ids, sampling, seconds))
            if body.stream:

                def choice(index: int, text: str, reason: str | None, first: bool) -> dict[str, Any]:
                    shown = prompts[index] + text if body.echo and first else text
                    return {"index": index, "text": shown, "logprobs": None, "finish_reason": reason}

                return _stream(started, frame, choice, counted=_counted(body, sum(map(len, all_ids))))
            answers = [await pending.whole() for pending in started]
        choices = [
            {
                "index": index,
                "text": prompt + answer.text if body.echo else answer.text,
                "logprobs": None,
                "finish_reason": _REASONS[answer.ending],
            }
            for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        ]
        used = usage(sum(map(len, all_ids)), sum(answer.new_tokens for answer in answers))
        return {**frame, "choices": choices, "usage": used}


def _chat(app: FastAPI, backend: Backend, scheduler: Scheduler, seconds: float) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatBody) -> Response:
        _require(backend, body, "chat")
        messages = [message.plain() for message in body.messages]
        if body.truncation == "auto":
            longest = scheduler.context - min(tokens_wanted(body), scheduler.context // 2)
            ids, left_out = backend.recent_chat_ids(messages, longest)
        else:
            ids, left_out = backend.chat_ids(messages), 0
        headers = {TURNS_LEFT_OUT: str(left_out)}
        sampling = sampling_of(body, scheduler.context - len(ids), backend.chat_stops)
        pending = Pending(scheduler, ids, sampling, seconds)
        if body.stream:

            def choice(index: int, text: str, reason: str | None, first: bool) -> dict[str, Any]:
                role = {"role": "assistant"} if first else {}
                content = {"content": text} if text or first else {}
                return {"index": index, "delta": {**role, **content}, "finish_reason": reason}

            frame = _frame("chatcmpl", "chat.completion.chunk", backend)
            return _stream([pending], frame, choice, headers, _counted(body, len(ids)))
        answer = await pending.whole()
        message = {"role": "assistant", "content": answer.text}
        choice_of = {"index": 0, "message": message, "finish_reason": _REASONS[answer.ending]}
        frame = _frame("chatcmpl", "chat.completion", backend)
        return JSONResponse(
            {**frame, "choices": [choice_of], "usage": usage(len(ids), answer.new_tokens)}, headers=headers
        )


def _embeddings(app: FastAPI, backend: Backend, scheduler: Scheduler, seconds: float) -> None:
    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingBody) -> dict[str, Any]:
        _require(backend, body, "embeddings")
        texts = [body.input] if isinstance(body.input, str) else body.input
        vectors = await on_model_thread(scheduler, lambda: backend.embed(texts), seconds)
        encode = _base64 if body.encoding_format == "base64" else _plain
        data = [
            {"object": "embedding", "index": index, "embedding": encode(vector)}
            for index, vector in enumerate(vectors)
        ]
        tokens = sum(len(backend.prompt_ids(text)) for text in texts)
        counted = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": backend.name, "usage": counted}


def _others(app: FastAPI, backend: Backend, scheduler: Scheduler, seconds: float) -> None:
    @app.post("/v1/translate")
    async def translate(body: TranslateBody) -> dict[str, Any]:
        _require(backend, body, "translate")
        texts = [body.text] if isinstance(body.text, str) else body.text

        def work() -> list[str]:
            return backend.translate(texts, body.max_tokens)

        return {"model": backend.name, "translations": await on_model_thread(scheduler, work, seconds)}

    @app.post("/v1/answer")
    async def answer(body: AnswerBody) -> dict[str, Any]:
        _require(backend, body, "answer")
        sources = [{"title": "context", "passage": body.context}] if body.context else []
        if not body.context and backend.index is not None:
            sources = await on_model_thread(scheduler, lambda: backend.search(body.question, 3), seconds)
        if (extractor := backend.extractor) is not None:

            def point() -> tuple[str, list[dict[str, Any]]]:
                return extractor.answer(body.question, sources)

            text, shown = await on_model_thread(scheduler, point, seconds)
            return {"model": backend.name, "answer": text, "sources": shown}
        longest = min(body.max_tokens, scheduler.context // 2)
        ids = backend.question_ids(body.question, sources, longest)
        sampling = Sampling(longest, temperature=0.0, stop=backend.answer_stops)
        found = await Pending(scheduler, ids, sampling, seconds).whole()
        text = backend.answer_in(found.text)
        return {"model": backend.name, "answer": text, "sources": [] if body.context else sources}

    @app.post("/v1/search")
    async def search(body: SearchBody) -> dict[str, Any]:
        _require(backend, body, "search")
        hits = await on_model_thread(scheduler, lambda: backend.search(body.query, body.top), seconds)
        return {"model": backend.name, "hits": hits}


def _unknown(name: str, backend: Backend) -> Refused:
    return Refused(404, f"there is no model {name!r} here, only {backend.name!r}", "model_not_found")


def _require(backend: Backend, body: Body, ability: str) -> None:
    """Refuse a request for another model, or for something that the served model cannot do."""
    if body.model not in (None, backend.name):
        raise _unknown(str(body.model), backend)
    backend.require(ability)


def _frame(prefix: str, kind: str, backend: Backend) -> dict[str, Any]:
    """Return the fields that every answer of a kind begins with."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": backend.name,
    }


def _stream(
    started: Sequence[Pending],
    frame: dict[str, Any],
    choice: Callable[[int, str, str | None, bool], dict[str, Any]],
    headers: Mapping[str, str] | None = None,
    counted: int | None = None,
) -> Response:
    """Return the answers as server-sent events, one after another, each event with a piece of text.

    Args:
        started: the answers.
        frame: fields of every event.
        choice: makes a choice of (number of the answer, piece of text, why it ends, whether it is the first).
        headers: of the response.
        counted: tokens of the prompts, if the counts are wanted at the end; else None.
    """

    async def events() -> AsyncIterator[str]:
        with all_or_none(started):
            for index, pending in enumerate(started):
                first = True
                async for piece in pending.pieces():
                    yield _event({**frame, "choices": [choice(index, piece, None, first)]})
                    first = False
                assert pending.ending is not None
                try:
                    refuse_failed(pending.ending)
                except Refused as refused:
                    yield _event({"error": {"message": str(refused), "type": "server_error"}})
                    return
                yield _event({**frame, "choices": [choice(index, "", _REASONS[pending.ending], first)]})
            if counted is not None:
                used = usage(counted, sum(pending.new_tokens for pending in started))
                yield _event({**frame, "choices": [], "usage": used})
            yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


def _counted(body: Sampled, prompt_tokens: int) -> int | None:
    return prompt_tokens if body.stream_options.include_usage else None


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _plain(vector: list[float]) -> Any:
    return vector


def _base64(vector: list[float]) -> Any:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
