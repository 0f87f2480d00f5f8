"""The HTTP server: it listens, and stops without dropping running requests."""

from __future__ import annotations

import signal
import socket
from types import FrameType
from typing import Protocol

import uvicorn

from distllm.errors import ConfigError
from distllm.serve.app import build_app, page
from distllm.serve.backend import Backend
from distllm.serve.guard import Guard
from distllm.serve.scheduler import Scheduler

_BACKLOG = 512


class Limits(Protocol):
    """Limits of a server; see `distllm.commands.serve.Options`."""

    @property
    def slots(self) -> int:
        """Requests advanced together."""

    @property
    def waiting(self) -> int:
        """Requests that may wait."""

    @property
    def max_bytes(self) -> int:
        """Largest body."""

    @property
    def per_minute(self) -> int:
        """Requests of one address in a minute."""

    @property
    def seconds(self) -> float:
        """Longest time of one request."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ConfigError: the address is not this machine's, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            where="host and port",
            remedy="choose another port=..., or port=0 for a free one",
        ) from error
    return listening


def guarded_app(backend: Backend, limits: Limits, token: str | None, *, loopback: bool) -> Guard:
    """Return the application behind its guard."""
    generates = backend.family == "decoder"
    scheduler = Scheduler(
        backend.model, backend.tokenizer, slots=limits.slots, waiting=limits.waiting, generates=generates
    )
    hosts = frozenset({"localhost", "127.0.0.1", "::1"}) if loopback else None
    return Guard(
        build_app(backend, scheduler, seconds=limits.seconds),
        token=token,
        max_bytes=limits.max_bytes,
        per_minute=limits.per_minute,
        hosts=hosts,
        policy=page()[1],
    )


def server_of(backend: Backend, loopback: bool, limits: Limits, token: str | None) -> uvicorn.Server:
    """Return a server that is not running yet; when asked to stop, it finishes its running requests.

    Args:
        backend: the model.
        loopback: whether only this machine can reach the server.
        limits: see `Limits`.
        token: what clients must send, or None.
    """
    config = uvicorn.Config(
        guarded_app(backend, limits, token, loopback=loopback),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=int(limits.seconds),
        timeout_keep_alive=30,
        backlog=_BACKLOG,
        server_header=False,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """Returns from ``run`` after a graceful stop, where uvicorn's own server raises the signal again."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop accepting requests; a second Ctrl-C gives up the running ones."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
