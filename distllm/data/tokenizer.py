"""Byte-level BPE: any text to ids and back without loss, and how many bytes each id stands for.

The alphabet holds all 256 bytes, so no text is unknown. Special tokens are never recognised inside
text: a document that spells ``<|endoftext|>`` becomes ordinary ids, and cannot forge a boundary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from distllm.errors import TokenizerError
from distllm.fsio import atomic_write_text, digest_bytes

EOT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
_EOT_NAMES = (EOT, "<|end_of_text|>", "</s>", "<eos>")


class Tokenizer:
    """A byte-level BPE tokenizer, made by ``train`` or ``load``."""

    def __init__(self, serialized: str, where: str) -> None:
        """Build from the text of a tokenizer.json; ``where`` names its origin in errors.

        Raises:
            TokenizerError: the text is no tokenizer, it loses bytes, or it has no end-of-text token.
        """
        try:
            self._description: dict[str, Any] = json.loads(serialized)
            inner = tokenizers.Tokenizer.from_str(serialized)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise TokenizerError(
                f"this is not a tokenizer.json: {error}",
                where=where,
                remedy="give the tokenizer.json that `tokenizers` or `transformers` saved",
            ) from error
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True
        self._serialized = serialized
        self._inner = inner
        self._vocab: dict[str, int] = inner.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(self._vocab.values(), default=-1) + 1
        self.eot_id = self._find_eot(where)
        self._require_lossless(where)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn merges from ``texts``; the same texts in the same order give the same tokenizer.

        The vocabulary is smaller than ``vocab_size`` if the texts hold too few repeated pairs.
        """
        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[EOT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        return cls(inner.to_str(), "the trained tokenizer")

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a tokenizer.json, or the one in the directory ``path``.

        Raises:
            TokenizerError: it is missing, unreadable, or not a lossless byte-level BPE.
        """
        path = Path(path)
        file = path / TOKENIZER_FILE if path.is_dir() else path
        try:
            serialized = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(
                f"cannot read the tokenizer {file}: {error}",
                where=str(file),
                remedy="set tokenizer.path to a tokenizer.json or its folder, or to null to train one",
            ) from error
        return cls(serialized, str(file))

    def save(self, path: Path) -> None:
        """Write the tokenizer.json, whole or not at all; loading it gives the same fingerprint."""
        atomic_write_text(path, self._serialized)

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, without an EOT.

        Raises:
            TokenizerError: the text holds lone surrogates, which are no characters.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text; uses all threads of the tokenizers library."""
        try:
            encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise TokenizerError(
                f"a text cannot be encoded as UTF-8: {error}", remedy="pass text without lone surrogates"
            ) from error
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``, EOT spelled out; bytes of a cut character become U+FFFD."""
        text: str = self._inner.decode(list(ids), skip_special_tokens=False)
        return text

    @cached_property
    def fingerprint(self) -> str:
        """The xxh3-128 digest of the tokenizer's description, whatever the layout of its file."""
        canonical = json.dumps(self._description, sort_keys=True, separators=(",", ":"))
        return digest_bytes(canonical.encode())

    def token_byte_lengths(self) -> NDArray[np.int64]:
        """Return for each id the UTF-8 bytes it stands for; 0 for special tokens and unused ids."""
        lengths_V = np.zeros(self.vocab_size, dtype=np.int64)
        for token, id_ in self._vocab.items():
            lengths_V[id_] = len(token)  # byte-level: one character of a token's name per byte
        for id_, length in self._added_token_bytes():
            lengths_V[id_] = length
        return lengths_V

    def _added_token_bytes(self) -> Iterator[tuple[int, int]]:
        for added in self._description.get("added_tokens", []):
            yield added["id"], 0 if added["special"] else len(added["content"].encode())

    def _find_eot(self, where: str) -> int:
        for name in _EOT_NAMES:
            if name in self._vocab:
                return self._vocab[name]
        raise TokenizerError(
            "the tokenizer has no end-of-text token",
            where=where,
            remedy=f"add a special token named one of: {', '.join(_EOT_NAMES)}",
        )

    def _require_lossless(self, where: str) -> None:
        """Refuse tokenizers for which the bytes of an id are not defined or a byte has no id."""
        parts = self._description.get("decoder") or {}
        kinds = {part.get("type") for part in [parts, *parts.get("decoders", [])]}
        missing = set(pre_tokenizers.ByteLevel.alphabet()) - self._vocab.keys()
        if "ByteLevel" in kinds and not missing:
            return
        problem = (
            f"it lacks {len(missing)} of the 256 bytes" if "ByteLevel" in kinds else "it is not byte-level"
        )
        raise TokenizerError(
            f"the tokenizer would lose text: {problem}",
            where=where,
            remedy="use a byte-level BPE (GPT-2, Llama 3, Qwen), or train one with tokenizer.path=null",
        )
