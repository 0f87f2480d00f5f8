"""`distllm serve`: a trained model behind HTTP."""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distllm.commands.arguments import parse_options
from distllm.commands.models import ModelOptions, open_model
from distllm.config.options import option
from distllm.errors import ConfigError, MissingDependency

TOKEN_VARIABLE = "DISTLLM_TOKEN"


@dataclass(frozen=True)
class Options(ModelOptions):
    """Options of `distllm serve`."""

    index: str | None = option(None, "a search index; alone, its own model is served")
    name: str | None = option(
        None, "what clients call the model; null takes the name of the run, the folder or the index's encoder"
    )
    host: str = option("127.0.0.1", "address to listen on; off loopback a token is required")
    port: int = option(8000, "port to listen on; 0 takes a free one", minimum=0, maximum=65535)
    slots: int = option(16, "requests that are advanced together", minimum=1, maximum=1024)
    waiting: int = option(256, "requests that may wait for a slot; more are refused", minimum=1)
    max_bytes: int = option(1 << 20, "largest body of a request", unit="bytes", minimum=1024)
    per_minute: int = option(600, "requests of one address in a minute", minimum=1)
    seconds: float = option(120.0, "longest time of one request", minimum=1.0)


def run(words: Sequence[str]) -> int:
    """Serve until asked to stop; requests under way are finished."""
    options = parse_options("serve", Options, words)
    token = os.environ.get(TOKEN_VARIABLE) or None
    _check(options, token)
    try:
        from distllm.serve.server import listen, server_of
    except ImportError as error:
        raise MissingDependency(
            f"the server needs {error.name}, which is not installed",
            where="distllm serve",
            remedy="pip install 'distllm[serve]'",
        ) from error
    backend = _backend(options)
    backend.name = options.name or backend.name
    with listen(options.host, options.port) as socket:
        address = f"http://{options.host}:{socket.getsockname()[1]}"
        print(f"{backend.name}: {', '.join(backend.abilities)}")
        print(f"page:   {address}/\nOpenAI: {address}/v1   (Ctrl-C stops; requests under way are finished)")
        server_of(backend, is_loopback(options.host), options, token).run(sockets=[socket])
    return 0


def _check(options: Options, token: str | None) -> None:
    """Refuse what would be open to everybody.

    Raises:
        ConfigError: nothing or two models to serve, or no token off loopback.
    """
    named = [key for key in ("run", "model") if getattr(options, key) is not None]
    if len(named) == 2 or not (named or options.index):
        raise ConfigError(
            "both a run and a model are given" if named else "nothing is given that can be served",
            where="distllm serve",
            remedy="give run=... or model=..., index=... beside it or alone; see distllm serve --help",
        )
    if token is None and not is_loopback(options.host):
        raise ConfigError(
            f"{options.host} can be reached by others, and there is no token",
            where="host",
            remedy=f"export {TOKEN_VARIABLE}={secrets.token_urlsafe(24)} (clients send it as their API key), "
            "or listen on 127.0.0.1",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _backend(options: Options) -> Any:
    from distllm.serve.backend import Backend

    index = None
    if options.index is not None:
        from distllm.commands.search import open_index

        index = open_index(options.index)
    if index is not None and options.run is None and options.model is None:
        encoder = index.encoder
        return Backend(Path(encoder.origin.path).name, encoder.model, encoder.tokenizer, index=index)
    return open_model(options, "serve", index)
