"""Texts to ids in bounded memory, by the library `tokenizers` or, where it agrees, by `gigatoken`.

Shapes: D documents, P pieces of documents, M ids, C ids of one text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from distllm.data.tokenizer.description import cuts_at_spaces, unspellable
from distllm.data.tokenizer.fast import fast_encoder
from distllm.data.tokenizer.packed import Backend, Packed, groups, join, pack
from distllm.data.tokenizer.train import surrogates_error

# `tokenizers` holds about 200 bytes an id until a call returns: a million characters are about 60 MB
_GROUP_CHARS = 1 << 20
_PIECE_CHARS = 1 << 15
_CUT = re.compile(r"(?<=\S)[ \n]")


class Encoder:
    """Encodes with `tokenizers` or `gigatoken`, in groups of about a million characters."""

    def __init__(self, description: Mapping[str, Any], backend: Backend) -> None:
        inner = tokenizers.Tokenizer.from_str(json.dumps(unspellable(description)))
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True
        self._inner = inner
        self._cuttable = cuts_at_spaces(description)
        self._fast = fast_encoder(backend, description, inner.get_vocab(), self._encode_slowly)

    @property
    def backend(self) -> str:
        """The library that encodes now."""
        return "gigatoken" if self._fast and self._fast.trusted else "tokenizers"

    @property
    def mismatches(self) -> int:
        """Texts on which gigatoken was seen to disagree."""
        return self._fast.mismatches if self._fast else 0

    def encode(self, texts: Sequence[str]) -> Packed:
        """Return the ids of all texts."""
        pieces, counts_D = self._pieces(texts)
        ids_M, ends_P = self._encode_pieces(pieces)
        return Packed(ids_M, ends_P if counts_D is None else ends_P[np.cumsum(counts_D) - 1])

    def _encode_pieces(self, pieces: list[str]) -> Packed:
        if self._fast is None or not pieces:
            return self._encode_slowly(pieces)
        try:
            return self._fast.encode(pieces)
        except UnicodeEncodeError as error:
            raise surrogates_error(error) from error

    def _encode_slowly(self, texts: list[str]) -> Packed:
        """Encode with `tokenizers` in groups of equal size; a small last group would leave cores idle."""
        chars = sum(map(len, texts))
        size = math.ceil(chars / max(1, round(chars / _GROUP_CHARS)))
        return join(self._encode_group(group) for group in groups(texts, size))

    def places(self, text: str) -> NDArray[np.int64]:
        """Return where in ``text`` each of its ids begins and ends, in characters, places_C2."""
        try:
            found = self._inner.encode(text, add_special_tokens=False).offsets
        except (TypeError, UnicodeEncodeError) as error:
            raise surrogates_error(error) from error
        return np.array(found, dtype=np.int64).reshape(-1, 2)

    def _encode_group(self, texts: list[str]) -> Packed:
        try:
            encodings = self._inner.encode_batch_fast(texts, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise surrogates_error(error) from error
        return pack(encoding.ids for encoding in encodings)

    def _pieces(self, texts: Sequence[str]) -> tuple[list[str], list[int] | None]:
        """Return the texts, long ones cut where that changes no id, and the pieces of each text."""
        if not self._cuttable or all(len(text) <= _PIECE_CHARS for text in texts):
            return list(texts), None
        cut = [list(_cut(text)) for text in texts]
        return [piece for pieces in cut for piece in pieces], [len(pieces) for pieces in cut]


def _cut(text: str) -> Iterator[str]:
    """Yield ``text`` in pieces, each but the first beginning with a space or newline after a character."""
    start = 0
    while len(text) - start > _PIECE_CHARS and (found := _CUT.search(text, start + _PIECE_CHARS)):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]
