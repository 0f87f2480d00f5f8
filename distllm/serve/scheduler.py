"""Continuous batching: one thread owns the model and advances all running requests by a token at a time.

Requests join between two tokens and leave when they are done, cancelled or late, so a short one never
waits for a long one. Other work with the model (embeddings, translation) runs between two tokens too.

Shapes: B running requests, V ids of the tokenizer.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

import torch

from distllm.data.tokenizer import Tokenizer
from distllm.errors import ConfigError
from distllm.models.init import Model
from distllm.serve.pool import Pool, Recorder
from distllm.serve.sampling import Sampling, draw_each
from distllm.serve.text import TextStream

T = TypeVar("T")
Ending = Literal["stop", "length", "cancelled", "timeout", "error"]
_LONGEST_IDLE_SECONDS = 1.0
_JOIN_AT_ONCE = 4  # prompts that are read between two tokens, while running requests wait

_log = logging.getLogger(__name__)


class Overloaded(Exception):
    """Too many requests wait already."""


class Stopped(Exception):
    """The scheduler was closed before the work was done."""


@dataclass(slots=True)
class Request:
    """One text to continue.

    Attributes:
        ids: the prompt.
        sampling: how its tokens are drawn.
        deadline: monotonic seconds at which the request is given up.
        tell: called on the scheduler's thread with each new piece of text, and finally with an `Ending`.
        new_ids: the ids drawn so far.
        text: their text.
        sent: how many characters of it were sent.
        cancelled: may be set by any thread to give the request up.
    """

    ids: Sequence[int]
    sampling: Sampling
    deadline: float
    tell: Callable[[str, Ending | None], None]
    new_ids: list[int] = field(default_factory=list)
    text: str = ""
    sent: int = 0
    cancelled: bool = False


class Scheduler:
    """Answers requests with a decoder, and runs other work with any model.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        slots: requests advanced together.
        waiting: requests that may wait; more are refused.
        generates: whether the model is a decoder.
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer, *, slots: int, waiting: int, generates: bool = True
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self.context: int = model.shape.max_seq_len
        weights = next(model.parameters())
        self._device = weights.device
        self._pool = (
            Pool(model.shape, slots, self.context, weights.device, weights.dtype) if generates else None
        )
        self._waiting: queue.Queue[Request] = queue.Queue(waiting)
        self._jobs: queue.Queue[tuple[Callable[[], Any], Future[Any]]] = queue.Queue(waiting)
        self._running: list[Request] = []
        self._streams: dict[int, TextStream] = {}
        self._stopping = False
        self._entry = threading.Lock()  # nothing is queued once `_stopping` is set
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def load(self) -> dict[str, int]:
        """Requests that run and that wait."""
        return {"running": len(self._running), "waiting": self._waiting.qsize() + self._jobs.qsize()}

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ConfigError: the model does not generate, or the prompt leaves no room in its context.
            Overloaded: too many requests wait.
            Stopped: the scheduler was closed.
        """
        if self._pool is None:
            raise ConfigError("this model does not continue texts", remedy="serve a decoder for that")
        if not 0 < len(request.ids) < self.context:
            raise ConfigError(
                f"the prompt has {len(request.ids)} tokens, and the model's context {self.context}",
                remedy=f"give a prompt of 1 to {self.context - 1} tokens",
            )
        self._enter(self._waiting, request)

    def run(self, work: Callable[[], T]) -> Future[T]:
        """Run ``work`` on the model's thread; the future gets `Stopped` if that ends before.

        Raises:
            Overloaded: too much is waiting.
            Stopped: the scheduler was closed.
        """
        future: Future[T] = Future()
        self._enter(self._jobs, (work, future))
        return future

    def _enter(self, line: queue.Queue[T], item: T) -> None:
        with self._entry:
            if self._stopping:
                raise Stopped
            try:
                line.put_nowait(item)
            except queue.Full as error:
                raise Overloaded from error
        self._wake.set()

    def close(self) -> None:
        """Stop the thread; requests are cancelled, and other waiting work fails with ``Stopped``."""
        with self._entry:
            self._stopping = True
        self._wake.set()
        self._thread.join()

    @torch.no_grad()
    def _work(self) -> None:
        while not self._stopping:
            self._do_jobs()
            self._join()
            if self._running:
                self._advance()
            elif self._waiting.empty() and self._jobs.empty():
                self._wake.wait(_LONGEST_IDLE_SECONDS)
                self._wake.clear()
        for request in (*self._running, *_drained(self._waiting)):
            self._end(request, "cancelled")
        for _, future in _drained(self._jobs):
            if future.set_running_or_notify_cancel():
                future.set_exception(Stopped())

    def _do_jobs(self) -> None:
        try:
            work, future = self._jobs.get_nowait()
        except queue.Empty:
            return
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

    def _join(self) -> None:
        """Read the prompts of waiting requests while slots are free."""
        pool = self._pool
        for _ in range(_JOIN_AT_ONCE):
            if pool is None or pool.rows == pool.slots:
                return
            try:
                request = self._waiting.get_nowait()
            except queue.Empty:
                return
            if request.cancelled or time.monotonic() > request.deadline:
                self._end(request, "cancelled" if request.cancelled else "timeout")
                continue
            self._guarded([request], partial(self._read, request))

    def _read(self, request: Request) -> None:
        """Read a prompt, draw the first token, and put the prompt's keys and values into the pool."""
        assert self._pool is not None
        self._streams[id(request)] = TextStream(self._tokenizer)
        recorder = Recorder(self._model.shape, len(request.ids))
        tokens_1T = torch.tensor([list(request.ids)], device=self._device)
        positions_1T = torch.arange(len(request.ids), device=self._device)[None]
        logits_11V = self._model(tokens_1T, positions_1T, cache=recorder, last_only=True)
        if not self._take(request, self._draw(logits_11V, [request])[0]):
            self._pool.admit(recorder.past)
            self._running.append(request)

    def _advance(self) -> None:
        """Draw one more token of every running request."""
        pool, batch = self._pool, list(self._running)
        assert pool is not None

        def step() -> None:
            pool.make_room()
            tokens_B1 = torch.tensor([[r.new_ids[-1]] for r in batch], device=self._device)
            places = [[len(r.ids) + len(r.new_ids) - 1] for r in batch]
            positions_B1 = torch.tensor(places, device=self._device)
            drawn = self._draw(self._model(tokens_B1, positions_B1, cache=pool), batch)
            pool.advance()
            for row in reversed(range(len(batch))):
                if self._take(batch[row], drawn[row]):
                    self._release(row)

        self._guarded(batch, step)

    def _draw(self, logits_B1V: torch.Tensor, requests: Sequence[Request]) -> list[int]:
        """Draw the next token of each request."""
        return draw_each(
            logits_B1V[:, -1, : self._tokenizer.vocab_size],
            [request.sampling for request in requests],
            [len(request.new_ids) for request in requests],
        )

    def _take(self, request: Request, drawn: int) -> bool:
        """Give a request its next token and tell its text; return whether the request has ended."""
        if request.cancelled or time.monotonic() > request.deadline:
            self._end(request, "cancelled" if request.cancelled else "timeout")
            return True
        if drawn == self._tokenizer.eot_id:
            self._finish(request, "stop")
            return True
        request.new_ids.append(drawn)
        request.text = text = self._streams[id(request)].add(drawn)
        if any(mark in text for mark in request.sampling.stop):
            self._finish(request, "stop")
            return True
        total = len(request.ids) + len(request.new_ids)
        if len(request.new_ids) >= request.sampling.max_tokens or total >= self.context:
            self._finish(request, "length")
            return True
        self._send(request, _settled(text, request.sampling.stop))
        return False

    def _finish(self, request: Request, ending: Ending) -> None:
        """Send the rest of the text, up to a stop text, and the ending."""
        text = request.text
        cut = min((text.find(mark) for mark in request.sampling.stop if mark in text), default=len(text))
        self._send(request, text[:cut])
        self._end(request, ending)

    def _send(self, request: Request, text: str) -> None:
        if len(text) > request.sent:
            request.tell(text[request.sent :], None)
            request.sent = len(text)

    def _end(self, request: Request, ending: Ending) -> None:
        self._streams.pop(id(request), None)
        request.tell("", ending)

    def _release(self, row: int) -> None:
        assert self._pool is not None
        self._pool.release(row)
        last = self._running.pop()
        if row < len(self._running):
            self._running[row] = last

    def _guarded(self, requests: Sequence[Request], action: Callable[[], None]) -> None:
        """Run ``action``; an error ends its requests, not the thread."""
        try:
            action()
        except Exception as error:
            _log.exception("the model failed: %s", error)
            for request in requests:
                if request in self._running:
                    self._release(self._running.index(request))
                self._end(request, "error")


def _drained(line: queue.Queue[T]) -> Iterator[T]:
    """Yield what waits in a queue that nothing enters any more."""
    while not line.empty():
        yield line.get_nowait()


def _settled(text: str, stop: Sequence[str]) -> str:
    """Return the part of ``text`` that later tokens cannot change: no half character, no half stop text."""
    text = text.rstrip("\N{REPLACEMENT CHARACTER}")
    held = max((n for mark in stop for n in range(1, len(mark)) if text.endswith(mark[:n])), default=0)
    return text[: len(text) - held]
