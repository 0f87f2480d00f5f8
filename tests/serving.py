"""A small model with random weights behind the real server, in this process."""

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import tiny

from distllm.config.schema import ModelConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.config.shape import settle_shape
from distllm.data.tokenizer import Tokenizer
from distllm.models.init import build_model
from distllm.serve.backend import Backend
from distllm.serve.server import listen, server_of

CONTEXT = 64


@dataclass(frozen=True)
class Limits:
    slots: int = 8
    waiting: int = 256
    max_bytes: int = 1 << 16
    per_minute: int = 100_000
    seconds: float = 60.0


def tokenizer():
    """Bytes and a few merges of the tiny corpus's words."""
    texts = [" ".join(tiny.WORDS)] * 20
    return Tokenizer.train(texts, TokenizerConfig(vocab_size=300))


def model(vocab_size, context=CONTEXT):
    """A decoder whose answers differ from prompt to prompt."""
    config = ModelConfig(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, init_std=0.2)
    return build_model(settle_shape(config, vocab_size, context), seed=1).eval()


def backend(**more):
    words = tokenizer()
    return Backend("small", model(words.vocab_size), words, **more)


@contextmanager
def running(served, limits=None, token=None):
    """Yield (address, server) of a server that runs on a thread; it is stopped and joined afterwards."""
    with listen("127.0.0.1", 0) as socket:
        server = server_of(served, True, limits or Limits(), token)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        while not server.started:
            time.sleep(0.02)
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}", server
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
