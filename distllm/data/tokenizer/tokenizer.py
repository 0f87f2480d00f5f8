"""Any text to ids and back, how many bytes each id stands for, and which id ends a text.

Special tokens are never recognised inside text: a document that spells ``<|endoftext|>`` becomes
ordinary ids, and cannot forge a boundary. Tokenizers trained here are lossless, because their
alphabet has all 256 bytes; an imported tokenizer says whether it is.

Shapes: D documents, M ids of all of them, C ids of one text, V ids of the vocabulary.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.tokenizer import description as describe
from distllm.data.tokenizer import folder
from distllm.data.tokenizer.encoder import Encoder
from distllm.data.tokenizer.packed import Backend, Packed
from distllm.data.tokenizer.train import EOT, surrogates_error, train_description
from distllm.errors import TokenizerError

_EOT_NAMES = (EOT, "<|end_of_text|>", "</s>", "<eos>")


class LossyTokenizer(UserWarning):
    """The tokenizer cannot give back every text it encodes."""


class Tokenizer:
    """A tokenizer, made by ``train`` or ``load``.

    Attributes:
        vocab_size: one more than the largest id.
        eot_id: the id that ends (here: precedes) a document; no text contains it.
        bot_id: the id that begins a text for an encoder: ``[CLS]`` if the tokenizer has one,
            otherwise ``eot_id``.
        opening: the ``bos_token`` of chat templates; the end-of-text token if there is none.
        opening_id: its id.
        lossless: whether decoding gives back every text exactly.
        lossless_reason: the reason.
        chat_template: a Jinja template of conversations, or None.
    """

    def __init__(
        self,
        serialized: str,
        where: str,
        settings: Mapping[str, Any] | None = None,
        backend: Backend = "tokenizers",
    ) -> None:
        """Build from the text of a tokenizer.json.

        Args:
            serialized: the text.
            where: its origin, for errors.
            settings: the content of its tokenizer_config.json, if there is one.
            backend: what encodes; see ``TokenizerConfig.backend``. It never changes ids.

        Raises:
            TokenizerError: the text is no tokenizer, it has no end-of-text token, or text can spell it.
            MissingDependency: ``backend`` is gigatoken, which is not installed.
        """
        settings = settings or {}
        try:
            self._description: dict[str, Any] = json.loads(serialized)
            self._inner = tokenizers.Tokenizer.from_str(serialized)
            self._inner.no_truncation()
            self._inner.no_padding()
        except Exception as error:  # the tokenizers library raises bare Exception
            raise TokenizerError(
                f"this is not a tokenizer.json: {error}",
                where=where,
                remedy="give the tokenizer.json that `tokenizers` or `transformers` saved",
            ) from error
        self._serialized = serialized
        self._vocab: dict[str, int] = self._inner.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(self._vocab.values(), default=-1) + 1
        self._eot = self._find_eot(settings, where)
        self.eot_id = self._vocab[self._eot]
        opening = folder.begin_token(settings)
        self._bot = opening if opening in self._vocab else self._eot
        self.bot_id = self._vocab[self._bot]
        bos = folder.named_token(settings, "bos_token")
        self.opening = bos if bos in self._vocab else self._eot
        self.opening_id = self._vocab[self.opening]
        self.chat_template = folder.chat_template(settings)
        loss = describe.why_lossy(self._description, self._vocab)
        self.lossless = loss is None
        self.lossless_reason = loss or "every byte has an id and decoding is the inverse of encoding"
        self._encoder = Encoder(self._description, backend)
        self._require_unforgeable(where)

    @classmethod
    def train(cls, texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
        """Learn from ``texts``; the same texts in the same order give the same tokenizer.

        The vocabulary is smaller than ``config.vocab_size`` if the texts hold too little.

        Raises:
            ConfigError: a key does not fit another, or the chat template cannot be read.
            TokenizerError: a text holds lone surrogates.
        """
        settings = {"eos_token": EOT, "chat_template": folder.read_template(config.chat_template)}
        return cls(train_description(texts, config), "the trained tokenizer", settings)

    @classmethod
    def load(
        cls, path: Path, *, backend: Backend = "tokenizers", chat_template: str | None = None
    ) -> Tokenizer:
        """Read a tokenizer.json, or the one in the directory ``path``, and the settings beside it.

        Args:
            path: the file or folder.
            backend: what encodes.
            chat_template: replaces the folder's own; text or a file.

        Raises:
            TokenizerError: it is missing, unreadable, or has no end-of-text token.
            ConfigError: the chat template cannot be read.
        """
        path = Path(path)
        file = path / folder.TOKENIZER_FILE if path.is_dir() else path
        serialized, settings = folder.read_description(path), folder.read_settings(path)
        if chat_template is not None:
            settings["chat_template"] = folder.read_template(chat_template)
        loaded = cls(serialized, str(file), settings, backend)
        if not loaded.lossless:
            reason = f"the tokenizer {file} loses text: {loaded.lossless_reason}"
            warnings.warn(reason, LossyTokenizer, stacklevel=1)  # from here: once a process, whoever loads it
        return loaded

    def save(self, directory: Path, *, max_length: int | None = None, encloses: bool = False) -> None:
        """Write a folder that ``transformers.AutoTokenizer`` loads, with the same fingerprint here.

        Args:
            directory: the folder.
            max_length: the longest input of the model it belongs to, in ids.
            encloses: whether software that reads the folder puts texts between the ids of `enclosed` and
                pads them with the last. This changes the fingerprint.
        """
        serialized = self._serialized
        if encloses:
            marks = {name: self._vocab[name] for name in (self._bot, self._eot)}
            template = describe.enclosing(self._bot, self._eot, marks)
            serialized = json.dumps({**self._description, "post_processor": template}, ensure_ascii=False)
        folder.write_folder(
            Path(directory),
            serialized,
            self._bot,
            self.opening,
            self._eot,
            self.chat_template,
            max_length,
            pads=encloses,
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, without an EOT.

        Raises:
            TokenizerError: the text holds lone surrogates, which are no characters.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without EOT.

        Raises:
            TokenizerError: a text holds lone surrogates.
        """
        ids_M, ends_D = self.encode_packed(texts)
        starts_D = np.concatenate([np.zeros(1, dtype=np.int64), ends_D])[:-1]
        ids = ids_M.tolist()
        return [ids[start:end] for start, end in zip(starts_D.tolist(), ends_D.tolist(), strict=True)]

    def encode_packed(self, texts: Sequence[str]) -> Packed:
        """Return the ids of all texts one after another (uint32), and where each ends (int64).

        The fastest way to encode. Beside the result it holds what `tokenizers` makes of about a million
        characters, or the UTF-8 of all texts where gigatoken encodes; a long text is encoded by all
        threads where the tokenizer's rule allows to cut it.

        Raises:
            TokenizerError: a text holds lone surrogates.
        """
        return self._encoder.encode(texts)

    def encode_marked(self, text: str) -> list[int]:
        """Return the ids of a trusted text, in which special tokens are recognised.

        Raises:
            TokenizerError: the text holds lone surrogates.
        """
        try:
            ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise surrogates_error(error) from error
        return ids

    def places(self, text: str) -> NDArray[np.int64]:
        """Return where in ``text`` each of its ids begins and ends, in characters, places_C2.

        They are places in the given text, not in the tokenizer's normalised one.

        Raises:
            TokenizerError: the text holds lone surrogates.
        """
        return self._encoder.places(text)

    def enclosed(self, ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids of a text as an encoder reads it: between ``bot_id`` and ``eot_id``."""
        return np.array([self.bot_id, *ids, self.eot_id], dtype=np.int64)

    @property
    def backend(self) -> str:
        """The library that encodes now: ``tokenizers``, or ``gigatoken`` as long as it agrees."""
        return self._encoder.backend

    @property
    def mismatches(self) -> int:
        """Documents on which gigatoken was seen to disagree: more than 0 once it has been given up."""
        return self._encoder.mismatches

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``, EOT spelled out; bytes of a cut character become U+FFFD."""
        text: str = self._inner.decode(list(ids), skip_special_tokens=False)
        return text

    def special_ids(self, names: Sequence[str]) -> list[int]:
        """Return the ids of special tokens; empty if the tokenizer lacks one of them."""
        return [self._vocab[name] for name in names] if self.special_tokens.issuperset(names) else []

    @cached_property
    def special_tokens(self) -> frozenset[str]:
        """The names of the special tokens, which are never recognised in text."""
        added = self._description.get("added_tokens", [])
        return frozenset(token["content"] for token in added if token["special"])

    @property
    def before(self) -> list[int]:
        """The ids that `transformers` puts before a text."""
        with_them, without = (self._inner.encode("a", add_special_tokens=add).ids for add in (True, False))
        places = range(len(with_them) - len(without) + 1)
        first = next(at for at in places if with_them[at : at + len(without)] == without)
        return list(with_them[:first])

    @property
    def ending(self) -> str:
        """The name of the token that ends a document."""
        return self._eot

    def word_starts(self) -> NDArray[np.bool_]:
        """Return for each id whether it begins a word: with a space, or where nothing joins it to the last.

        Byte-level and SentencePiece names carry the space before a word; WordPiece names mark what
        continues one.
        """
        wordpiece = any(token.startswith("##") for token in self._vocab)
        starts_V = np.zeros(self.vocab_size, dtype=bool)
        for token, id_ in self._vocab.items():
            starts_V[id_] = not token.startswith("##") if wordpiece else token.startswith(("Ġ", "▁", "Ċ"))
        starts_V[self.eot_id] = True
        return starts_V

    @cached_property
    def fingerprint(self) -> str:
        """The xxh3-128 digest of what determines ids, whatever the layout of the file."""
        usual = self._eot == self._usual_eot()
        return describe.fingerprint(self._description, None if usual else self._eot)

    def token_byte_lengths(self) -> NDArray[np.int64] | None:
        """Return for each id the UTF-8 bytes it stands for; 0 for special tokens and unused ids.

        None if the tokenizer is not byte-level: its ids have no bytes of their own.
        """
        if describe.why_not_byte_level(self._description, self._vocab):
            return None
        lengths_V = np.zeros(self.vocab_size, dtype=np.int64)
        for token, id_ in self._vocab.items():
            lengths_V[id_] = len(token)  # byte-level: one character of a token's name per byte
        for added in self._description.get("added_tokens", []):
            lengths_V[added["id"]] = 0 if added["special"] else len(added["content"].encode())
        return lengths_V

    def _usual_eot(self) -> str | None:
        return next((name for name in _EOT_NAMES if name in self._vocab), None)

    def _find_eot(self, settings: Mapping[str, Any], where: str) -> str:
        name = folder.end_token(settings) or self._usual_eot()
        if name in self._vocab:
            return name
        raise TokenizerError(
            "the tokenizer has no end-of-text token"
            + (f": {name} of its {folder.CONFIG_FILE} is not in its vocabulary" if name else ""),
            where=where,
            remedy=f"add a special token named one of: {', '.join(_EOT_NAMES)}, "
            f"or name another as eos_token in a {folder.CONFIG_FILE} beside it",
        )

    def _require_unforgeable(self, where: str) -> None:
        """Refuse an EOT that is an ordinary token, because text could then end documents."""
        name = self._eot
        for text in (name, f" {name}", f"a{name}b", f"{name} {name}"):
            if self.eot_id in self.encode(text):
                raise TokenizerError(
                    f"the end-of-text token {name} can be spelled by text",
                    where=where,
                    remedy="declare it as a special token that is no merge or word of the model",
                )
