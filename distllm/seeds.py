"""Counter-based random streams: a number that depends on names, never on call order.

A stream is addressed by the experiment seed and a path such as ``("init", "layers.3")``; nothing
is consumed, so there is no state to save, and adding a stream changes no other.
"""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *path: str | int) -> int:
    """Return a 63-bit seed for the stream ``path`` of the experiment ``seed``.

    The same arguments give the same number on every machine and Python version (BLAKE2b).
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in path)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
