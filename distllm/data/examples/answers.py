"""How a dataset stores questions with answers, and which characters of a context its ids cover.

An answer is a range of characters of its context. A lossless tokenizer gives the text back, so its ids
are enough. Others (WordPiece, SentencePiece) normalise text first: then the field of the answers holds
the bytes of a JSON object with the answers and the original context, and the tokenizer says which
characters of that context each id covers.

Shapes: C ids of a context.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distllm.data.examples.framing import Ids, Record
from distllm.data.records import ANSWERS
from distllm.data.tokenizer import Tokenizer
from distllm.data.tokenizer.packed import Packed, pack
from distllm.errors import DataError

CONTEXT, QUESTION = "context", "question"


def encode_answers(documents: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> Packed:
    """Return the content of the field ``answers`` for documents with the fields of questions."""
    if tokenizer.lossless:
        return tokenizer.encode_packed([fields[ANSWERS] for fields in documents])
    whole = [
        json.dumps(
            {CONTEXT: fields[CONTEXT], ANSWERS: json.loads(fields[ANSWERS])}, ensure_ascii=False
        ).encode("utf-8", "replace")
        for fields in documents
    ]
    return pack([np.frombuffer(content, dtype=np.uint8).astype(np.uint32) for content in whole])


def question_record(question: Ids, context: str, tokenizer: Tokenizer) -> Record:
    """Return the record of a question without an answer."""
    held = encode_answers([{CONTEXT: context, ANSWERS: "[]"}], tokenizer).ids_M
    ids = np.array(tokenizer.encode(context), dtype=np.int64)
    return {CONTEXT: ids, QUESTION: question, ANSWERS: held.astype(np.int64)}


def answers_of(record: Record, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return the answers of a question, each with ``text`` and ``start``, a character or None.

    Raises:
        DataError: the record holds none.
    """
    return list(_content(record, tokenizer)[ANSWERS])


def context_of(record: Record, tokenizer: Tokenizer) -> str:
    """Return the original context.

    Raises:
        DataError: the record does not hold it.
    """
    if tokenizer.lossless:
        return tokenizer.decode(record[CONTEXT].tolist())
    return str(_content(record, tokenizer)[CONTEXT])


def places_of(
    record: Record, context: str, tokenizer: Tokenizer
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the characters of the text at which each id of a context begins and ends.

    An id that is a part of a character begins and ends with it.

    Raises:
        DataError: the tokenizer cuts the text into other ids.
    """
    ids = record[CONTEXT]
    if not tokenizer.lossless:
        places_C2 = tokenizer.places(context)
        if len(places_C2) != ids.size:
            raise _damaged(f"its context has {ids.size} ids, and its text {len(places_C2)}", context)
        return places_C2[:, 0], places_C2[:, 1]
    lengths_V = tokenizer.token_byte_lengths()
    assert lengths_V is not None
    ends_C = np.cumsum(lengths_V[ids])
    # the character that each byte belongs to: bytes that continue one begin with the bits 10
    content = np.frombuffer(context.encode(), dtype=np.uint8)
    character = np.concatenate([np.cumsum((content & 0xC0) != 0x80), [len(context) + 1]]) - 1
    starts_C = np.concatenate([[0], ends_C])[:-1]
    return character[starts_C], character[np.maximum(ends_C - 1, starts_C)] + 1


def _content(record: Record, tokenizer: Tokenizer) -> dict[str, Any]:
    ids = record[ANSWERS]
    try:
        if tokenizer.lossless:
            return {ANSWERS: list(json.loads(tokenizer.decode(ids.tolist())))}
        return dict(json.loads(ids.astype(np.uint8).tobytes()))
    except ValueError as error:
        shown = tokenizer.decode(record[QUESTION].tolist()) if QUESTION in record else ""
        raise _damaged(f"its answers are not JSON ({error})", shown) from error


def _damaged(problem: str, shown: str) -> DataError:
    return DataError(
        f"a question cannot be read: {problem}",
        where=f"a document that begins {shown[:60]!r}",
        remedy="prepare the dataset again, into another data.out, with data.source=qa",
    )
