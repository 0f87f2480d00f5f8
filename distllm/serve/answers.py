"""Answers of the model's thread, awaited by the server's coroutines, whole or piece by piece."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from distllm.serve.guard import Refused
from distllm.serve.sampling import Sampling
from distllm.serve.scheduler import Ending, Overloaded, Request, Scheduler, Stopped
from distllm.serve.schema import Sampled

T = TypeVar("T")

_DEFAULT_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer: its text, why it ended, and how many tokens it took."""

    text: str
    ending: Ending
    new_tokens: int


class Pending:
    """A request that is being answered.

    Args:
        scheduler: answers it.
        ids: the prompt.
        sampling: how tokens are drawn.
        seconds: the longest time until the answer is complete.

    Raises:
        ConfigError: the prompt does not fit the model.
        Refused: 503, too many requests wait, or the server stops.
    """

    def __init__(self, scheduler: Scheduler, ids: Sequence[int], sampling: Sampling, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[tuple[str, Ending | None]] = asyncio.Queue()

        def tell(text: str, ending: Ending | None) -> None:
            loop.call_soon_threadsafe(self._pieces.put_nowait, (text, ending))

        self._request = Request(ids, sampling, time.monotonic() + seconds, tell)
        with _refusing():
            scheduler.submit(self._request)
        self.ending: Ending | None = None

    @property
    def new_tokens(self) -> int:
        """Tokens drawn so far."""
        return len(self._request.new_ids)

    def cancel(self) -> None:
        """Give the rest of the answer up."""
        self._request.cancelled = True

    async def pieces(self) -> AsyncIterator[str]:
        """Yield the text as it comes; a client that leaves cancels the request."""
        try:
            while self.ending is None:
                text, self.ending = await self._pieces.get()
                if text:
                    yield text
        finally:
            self.cancel()

    async def whole(self) -> Answer:
        """Return the answer once it is complete.

        Raises:
            Refused: 504, it took too long; 503, the server stops; 500, the model failed.
        """
        text = "".join([piece async for piece in self.pieces()])
        assert self.ending is not None
        refuse_failed(self.ending)
        return Answer(text, self.ending, self.new_tokens)


@contextmanager
def all_or_none(started: Sequence[Pending] = ()) -> Iterator[list[Pending]]:
    """Cancel all requests of one client when one of them fails or the client leaves."""
    pending = list(started)
    try:
        yield pending
    except BaseException:
        for each in pending:
            each.cancel()
        raise


def refuse_failed(ending: Ending) -> None:
    """Raise `Refused` if an answer did not end normally."""
    if ending == "timeout":
        raise Refused(504, "the answer took longer than this server allows")
    if ending == "cancelled":
        raise Refused(503, "the server is stopping")
    if ending == "error":
        raise Refused(500, "the model failed; the server's log says why")


async def on_model_thread(scheduler: Scheduler, work: Callable[[], T], seconds: float) -> T:
    """Run other work on the model's thread, within the time that a request may take.

    Raises:
        Refused: 503, too much is waiting or the server stops; 504, it took too long.
    """
    with _refusing():
        return await asyncio.wait_for(asyncio.wrap_future(scheduler.run(work)), seconds)


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except Overloaded as error:
        raise Refused(503, "too many requests are waiting; try again soon") from error
    except Stopped as error:
        raise Refused(503, "the server is stopping") from error
    except TimeoutError as error:
        raise Refused(504, "the answer took longer than this server allows") from error


def tokens_wanted(body: Sampled) -> int:
    """Return the longest answer a request asks for, in tokens."""
    return body.max_completion_tokens or body.max_tokens or _DEFAULT_TOKENS


def sampling_of(body: Sampled, room: int, stops: Sequence[str] = ()) -> Sampling:
    """Return how the tokens of a request are drawn; a request without a seed gets a random one.

    Args:
        body: the request.
        room: tokens that the model's context has left.
        stops: texts that end the answer, in addition to those of the request.
    """
    stop = [body.stop] if isinstance(body.stop, str) else list(body.stop or ())
    return Sampling(
        max_tokens=max(1, min(tokens_wanted(body), room)),
        temperature=body.temperature,
        top_p=body.top_p,
        seed=uuid.uuid4().int % 2**31 if body.seed is None else body.seed,
        stop=[*stops, *(mark for mark in stop if mark)],
    )
