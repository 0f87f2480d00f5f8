"""Checks before every request (token, host, rate, size) and security headers on every answer.

Pure ASGI: a body that is too large is refused while it arrives, and streamed answers are not buffered.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_OPEN_PATHS = frozenset({"/", "/health"})
_MOST_CLIENTS = 10_000
BODY_SECONDS = 20.0


class Refused(Exception):
    """Ends a request with an HTTP status; ``code`` is the machine-readable error code of OpenAI's API."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Guard:
    """Wrap an ASGI application.

    Args:
        app: the application.
        token: what clients must send as ``Authorization: Bearer``; None: no token is needed.
        max_bytes: largest body.
        per_minute: requests of one address in a minute; a burst of that size is allowed.
        hosts: values of the Host header that are answered; None: all. On loopback this stops DNS
            rebinding: pages of other sites whose host name resolves to this machine.
        policy: the Content-Security-Policy of every answer.
    """

    def __init__(
        self,
        app: App,
        *,
        token: str | None,
        max_bytes: int,
        per_minute: int,
        hosts: frozenset[str] | None,
        policy: str,
    ) -> None:
        self._app = app
        self._token = token.encode() if token is not None else None
        self._max_bytes, self._hosts = max_bytes, hosts
        self._rate = Rate(per_minute)
        self._headers = [
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cache-control", b"no-store"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here if it is refused."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def sent(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", []), *self._headers]
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, replayed(await self._body(receive), receive), sent)
        except Refused as refused:
            if not started:
                await _answer(refused, sent)

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self._hosts is not None and _host_name(headers.get(b"host", b"")) not in self._hosts:
            raise Refused(421, "this server does not answer for that host")
        if scope["path"] in _OPEN_PATHS:
            return
        if self._token is not None and not self._authorised(headers.get(b"authorization", b"")):
            raise Refused(401, "send the server's token as Authorization: Bearer TOKEN")
        client = scope.get("client") or ("", 0)
        if (wait := self._rate.wait(client[0])) > 0:
            raise Refused(429, f"too many requests; try again in {wait:.0f} s")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_bytes:
            raise Refused(413, f"the body is larger than {self._max_bytes} bytes")

    def _authorised(self, header: bytes) -> bool:
        """Compare the token in a time that does not depend on where it differs."""
        assert self._token is not None
        scheme, _, given = header.partition(b" ")
        return hmac.compare_digest(given.strip(), self._token) and scheme.lower() == b"bearer"

    async def _body(self, receive: Receive) -> bytes:
        """Read the body, whose stated length may be absent or wrong, and which may never end."""
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "the connection ended before the body did")
                    body += message.get("body", b"")
                    if len(body) > self._max_bytes:
                        raise Refused(413, f"the body is larger than {self._max_bytes} bytes")
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as error:
            raise Refused(408, f"the body did not arrive within {BODY_SECONDS:.0f} s") from error


def _host_name(header: bytes) -> str | None:
    """Return the host of a Host header, without its port; None if it is malformed."""
    try:
        return urlsplit(f"//{header.decode('latin-1')}").hostname
    except ValueError:
        return None


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a channel that gives the body once, and then the client's later messages."""
    given = False

    async def channel() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return channel


class Rate:
    """A token bucket for each address.

    Args:
        per_minute: tokens that a bucket gets in a minute, and its size.
        clock: monotonic seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._size, self._clock = float(per_minute), clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait(self, address: str) -> float:
        """Take one token; return 0, or the seconds until there will be one."""
        now = self._clock()
        left, at = self._buckets.get(address, (self._size, now))
        left = min(self._size, left + (now - at) * self._size / 60)
        if left < 1:
            self._buckets[address] = (left, now)
            return (1 - left) * 60 / self._size
        if len(self._buckets) >= _MOST_CLIENTS and address not in self._buckets:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[address] = (left - 1, now)
        return 0.0


async def _answer(refused: Refused, send: Send) -> None:
    body = json.dumps({"error": {"message": str(refused), "type": "invalid_request_error"}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"www-authenticate", b"Bearer")] if refused.status == 401 else []
    headers += [(b"retry-after", b"1")] if refused.status in (429, 503) else []
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
