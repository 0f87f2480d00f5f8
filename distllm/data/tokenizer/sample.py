"""The text that a tokenizer is trained on: an even sample of a corpus above the limit."""

from __future__ import annotations

from collections.abc import Iterator

import xxhash

from distllm.config.schema_tokenizer import TokenizerConfig

_PIECE_CHARS = 1 << 16
_HASHES = 1 << 64


def training_texts(
    pairs: Iterator[tuple[str, str]], config: TokenizerConfig, total_bytes: int
) -> Iterator[str]:
    """Yield the text to train on: all of it, or about ``config.train_bytes`` and never more.

    A document is chosen by the hash of its id, so the choice depends neither on order nor on workers,
    and is spread over all sources. Documents above 64 Ki characters are divided into pieces,
    each chosen by its own hash, so that no long document is taken or left as a whole.

    Args:
        pairs: id and text of every document; fields of one document share an id.
        config: its ``train_bytes``.
        total_bytes: UTF-8 bytes of all texts.
    """
    if total_bytes <= config.train_bytes:
        for _, text in pairs:
            yield text
        return
    threshold = _HASHES * config.train_bytes // total_bytes
    left = config.train_bytes
    for id_, text in pairs:
        for number, start in enumerate(range(0, len(text), _PIECE_CHARS)):
            if _hash(id_, number) >= threshold:
                continue
            piece = text[start : start + _PIECE_CHARS]
            left -= len(piece.encode("utf-8", "surrogatepass"))
            if left < 0:  # the hashes happened to choose more than the bound
                return
            yield piece


def _hash(id_: str, number: int) -> int:
    name = f"{id_}\0{number}" if number else id_
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))
