"""The stages that turn text into ids: train or load the tokenizer, then encode every unit.

Shapes: N documents of a unit's split, M ids of one field.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from distllm.config.schema import Config
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.clean.tokens import count_words
from distllm.data.examples.answers import encode_answers
from distllm.data.examples.dialogue import MESSAGES
from distllm.data.pipeline.documents import text_bytes
from distllm.data.pipeline.sources import Unit
from distllm.data.pipeline.spool import read_batches
from distllm.data.pipeline.work import Result, Task, Tick, address
from distllm.data.records import ANSWERS, TEXT, Document
from distllm.data.shards import token_dtype
from distllm.data.split import CANARY, SPLITS, TRAIN, Splitter, split_key
from distllm.data.tokenizer import Backend, Tokenizer, read_template, training_texts
from distllm.data.tokenizer.chat import CHATML, MARKS

_VERSIONS = {"tokenizer": 4, "encode": 5}
_IDS_FILE = "{split}.ids.json"
_LENGTHS_FILE = "{split}.lengths.npy"
_TOKENS_FILE = "{split}.{field}.bin"
_ENDS_FILE = "{split}.{field}.ends.npy"


def tokenizer_task(
    config: Config, units: Sequence[Unit], refined: Sequence[Result], splitters: Mapping[str, Splitter]
) -> Task:
    """Train on the train split of every source, or load ``tokenizer.path``; save it."""
    asked = _with_template(config.tokenizer, units)
    total = sum(int(result.facts["text_bytes"]) for result in refined)

    def texts(tick: Tick) -> Iterator[tuple[str, str]]:
        done = 0
        for unit, result in zip(units, refined, strict=True):
            splitter = splitters[unit.source.name]
            for batch in read_batches(result.directory):
                for document in batch:
                    done += text_bytes(document)
                    # A canary's copies would become pieces of their own, and hide what the model remembers.
                    if splitter(split_key(document)) == TRAIN and not document.id.startswith(CANARY):
                        yield from ((document.id, text) for text in document.fields.values())
                tick(done)

    def perform(directory: Path, tick: Tick) -> Mapping[str, Any]:
        if asked.path:
            tokenizer = Tokenizer.load(Path(asked.path), chat_template=asked.chat_template)
        else:
            tokenizer = Tokenizer.train(training_texts(texts(tick), asked, total), asked)
        tokenizer.save(directory)
        return {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size}

    ingredients: list[Any]
    if asked.path:
        loaded = Tokenizer.load(Path(asked.path), chat_template=asked.chat_template)
        ingredients = [loaded.fingerprint, loaded.chat_template]
    else:
        ingredients = [[result.digest for result in refined], _boundaries(splitters), config.seed]
        ingredients.append(read_template(asked.chat_template))
    keys = {name: value for name, value in asdict(asked).items() if name != "backend"}
    key = address("tokenizer", _VERSIONS["tokenizer"], keys, *ingredients)
    return Task(key, max(1, total), perform)


def _with_template(asked: TokenizerConfig, units: Sequence[Unit]) -> TokenizerConfig:
    """Return the configuration of a tokenizer that can render conversations, if there are some."""
    if asked.chat_template is not None or not any(MESSAGES in unit.source.fields for unit in units):
        return asked
    if asked.path is not None:
        has_one = Tokenizer.load(Path(asked.path)).chat_template is not None
        return asked if has_one else replace(asked, chat_template=CHATML)
    marks = [mark for mark in MARKS if mark not in asked.special_tokens]
    return replace(asked, chat_template=CHATML, special_tokens=(*asked.special_tokens, *marks))


def _boundaries(splitters: Mapping[str, Splitter]) -> dict[str, int]:
    return {name: splitter.boundary for name, splitter in splitters.items()}


def encode_task(
    unit: Unit, refined: Result, splitter: Splitter, tokenizer: Result, backend: Backend = "tokenizers"
) -> Task:
    """Encode the documents of one unit, each split separately; ``backend`` does not change the result."""
    sides = dict(zip(unit.source.fields, unit.source.read.languages, strict=False))

    def perform(directory: Path, tick: Tick) -> Mapping[str, Any]:
        encoder = encoder_of(tokenizer.directory, backend)
        outputs = {
            split: _SplitOutput(directory, split, unit.source.fields, encoder, sides) for split in SPLITS
        }
        done = 0
        for batch in read_batches(refined.directory):
            for split, output in outputs.items():
                output.add([document for document in batch if splitter(split_key(document)) == split])
            done += sum(map(text_bytes, batch))
            tick(done)
        splits = {split: output.close() for split, output in outputs.items()}
        apart = {split: output.sides() for split, output in outputs.items()}
        return {"splits": splits, **({"sides": apart} if sides else {})}

    key = address(
        "encode", _VERSIONS["encode"], refined.digest, tokenizer.facts["fingerprint"], splitter.seed,
        splitter.boundary, *(["answers 2"] if ANSWERS in unit.source.fields else []),
        *([sides] if sides else []),
    )  # fmt: skip
    return Task(key, max(1, int(refined.facts["text_bytes"])), perform)


@lru_cache(maxsize=1)
def encoder_of(directory: Path, backend: Backend) -> Tokenizer:
    """Return the tokenizer of a preparation.

    All units share one, because not all memory of a deleted tokenizer is freed.
    """
    return Tokenizer.load(directory, backend=backend)


class _SplitOutput:
    """Writes the ids of one unit's documents of one split.

    Args:
        directory: gets the files.
        split: the split.
        fields: the fields of every document.
        tokenizer: makes the ids.
        sides: the languages of fields that have their own, such as both sides of a pair.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        fields: Sequence[str],
        tokenizer: Tokenizer,
        sides: Mapping[str, str],
    ) -> None:
        self._directory, self._split, self._tokenizer = directory, split, tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._ids = (directory / _IDS_FILE.format(split=split)).open("w", encoding="utf-8")
        self._tokens: dict[str, IO[bytes]] = {
            field: (directory / _TOKENS_FILE.format(split=split, field=field)).open("wb") for field in fields
        }
        self._sizes: dict[str, list[NDArray[np.int64]]] = {field: [] for field in fields}
        self._languages: dict[str, Counter[str]] = {}
        self._side_of = sides
        self._sides: dict[str, Counter[str]] = {}

    def add(self, documents: Sequence[Document]) -> None:
        """Encode and append ``documents``."""
        if not documents:
            return
        tokens_N = np.zeros(len(documents), dtype=np.int64)
        for field, stream in self._tokens.items():
            fields = [document.fields for document in documents]
            packed = (
                encode_answers(fields, self._tokenizer)
                if field == ANSWERS
                else self._tokenizer.encode_packed([each[field] for each in fields])
            )
            ids_M, ends_N = packed.ids_M.astype(self._dtype), packed.ends_D
            if field == TEXT:
                ids_M, ends_N = open_documents(ids_M, ends_N, self._tokenizer.eot_id)
            stream.write(ids_M.data)
            sizes_N = np.diff(ends_N, prepend=np.int64(0))
            self._sizes[field].append(sizes_N)
            tokens_N += sizes_N if field != ANSWERS else 0
            if (language := self._side_of.get(field)) is not None:
                counts = self._sides.setdefault(language, Counter())
                for each, tokens in zip(fields, sizes_N.tolist(), strict=True):
                    _count(counts, [each[field]], tokens)
        for document, tokens in zip(documents, tokens_N.tolist(), strict=True):
            self._ids.write(json.dumps(document.id) + "\n")
            counts = self._languages.setdefault(document.language, Counter())
            read = (text for field, text in document.fields.items() if field != ANSWERS)  # not by a model
            _count(counts, read, tokens)

    def sides(self) -> dict[str, dict[str, int]]:
        """Return the counts of the languages of single fields."""
        return {language: dict(counts) for language, counts in self._sides.items()}

    def close(self) -> dict[str, dict[str, int]]:
        """Write the lengths and return the counts of each language."""
        empty = np.zeros(0, dtype=np.int64)
        documents = sum(counts["documents"] for counts in self._languages.values())
        total_N = np.zeros(documents, dtype=np.int64)
        for field, stream in self._tokens.items():
            stream.close()
            sizes_N = np.concatenate([empty, *self._sizes[field]])
            np.save(self._directory / _ENDS_FILE.format(split=self._split, field=field), np.cumsum(sizes_N))
            total_N += sizes_N
        np.save(self._directory / _LENGTHS_FILE.format(split=self._split), total_N)
        self._ids.close()
        return {language: dict(counts) for language, counts in self._languages.items()}


def _count(counts: Counter[str], texts: Iterable[str], tokens: int) -> None:
    size = words = 0
    for text in texts:
        size += len(text.encode("utf-8", "surrogatepass"))
        words += count_words(text)
    counts.update(documents=1, bytes=size, words=words, tokens=tokens)


def open_documents(
    ids_M: NDArray[Any], ends_N: NDArray[np.int64], eot_id: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Put EOT before each document; return the longer ids, of the same type, and their ends."""
    opened_N = ends_N + np.arange(1, ends_N.size + 1)
    is_id_M = np.ones(ids_M.size + ends_N.size, dtype=bool)
    is_id_M[np.concatenate([np.zeros(1, dtype=np.int64), opened_N])[:-1]] = False
    opened_M = np.full(is_id_M.size, eot_id, dtype=ids_M.dtype)
    opened_M[is_id_M] = ids_M
    return opened_M, opened_N


@dataclass(frozen=True, slots=True)
class EncodedUnit:
    """The encoded documents of one unit's split, mapped into memory."""

    directory: Path
    split: str
    dtype: np.dtype[Any]

    def lengths(self) -> NDArray[np.int64]:
        """Return the ids of each document, all fields together."""
        lengths_N: NDArray[np.int64] = np.load(self.directory / _LENGTHS_FILE.format(split=self.split))
        return lengths_N

    def ids(self, start: int, stop: int) -> list[str]:
        """Return the ids of documents ``[start, stop)``."""
        with (self.directory / _IDS_FILE.format(split=self.split)).open(encoding="utf-8") as stream:
            return [json.loads(line) for row, line in enumerate(stream) if start <= row < stop]

    def ends(self, field: str, start: int, stop: int) -> tuple[int, NDArray[np.int64]]:
        """Return the first id of ``field`` of documents ``[start, stop)``, and where each ends after it."""
        ends_N = np.load(self.directory / _ENDS_FILE.format(split=self.split, field=field), mmap_mode="r")
        first = int(ends_N[start - 1]) if start else 0
        return first, np.asarray(ends_N[start:stop]) - first

    def tokens(self, field: str, first: int, count: int) -> NDArray[Any]:
        """Return ``count`` ids of ``field``, starting with number ``first``."""
        path = self.directory / _TOKENS_FILE.format(split=self.split, field=field)
        return np.fromfile(path, dtype=self.dtype, count=count, offset=first * self.dtype.itemsize)
