"""Questions with their answers (SQuAD), and conversations."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distllm.config.schema_read import ReadConfig
from distllm.data.read.lines import json_records, named
from distllm.data.read.part import Part
from distllm.data.read.streams import DamagedFile, decode, read_whole
from distllm.data.records import Document, Dropped, excerpt

_LINES = (".jsonl", ".ndjson")
_ANSWERS = ("answers", "answer")
_MESSAGES = ("messages", "conversations", "conversation")
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


def read_qa(file: Path, part: Part, read: ReadConfig) -> Iterator[Document | Dropped]:
    """Yield every question of a SQuAD file (1.1 or 2.0), or of JSON lines with its keys.

    The field ``answers`` is a JSON list of ``{"text", "start"}``, empty where there is no answer.
    Rules of refusal: those of JSON, ``no_question``, ``no_answers`` (nor ``is_impossible``),
    ``wrong_answer`` (an answer is not text, or the context does not contain it at the given place).
    """
    for record in _records(file, part, read):
        if isinstance(record, Dropped):
            yield record
            continue
        name, content = record
        for question_name, question in _questions(name, content):
            yield _question(question_name, question, read)


def read_chat(file: Path, part: Part, read: ReadConfig) -> Iterator[Document | Dropped]:
    """Yield every conversation of a JSON or JSON-lines file, in OpenAI's or ShareGPT's form.

    The field ``messages`` is a JSON list of ``{"role", "content"}``. Rules of refusal: those of JSON,
    ``no_messages``, ``wrong_message``.
    """
    for record in _records(file, part, read):
        yield record if isinstance(record, Dropped) else _conversation(*record, read)


def _records(file: Path, part: Part, read: ReadConfig) -> Iterator[tuple[str, dict[str, Any]] | Dropped]:
    if any(suffix in file.name.lower() for suffix in _LINES):
        yield from json_records(file, part, read)
        return
    content = read_whole(file, part.name, read)
    text = content if isinstance(content, Dropped) else decode(content, part.name, read)
    if isinstance(text, Dropped):
        yield text
        return
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"not JSON: {error}") from error
    if isinstance(found, dict) and isinstance(found.get("data"), list):
        found = found["data"]
    for number, item in enumerate(found if isinstance(found, list) else [found]):
        if isinstance(item, dict):
            yield f"{part.name}#{number}", item
        else:
            yield Dropped(f"{part.name}#{number}", "not_an_object", f"a JSON {type(item).__name__}")


def _questions(name: str, content: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the questions of a SQuAD article, or the single question of a flat record."""
    if not isinstance(content.get("paragraphs"), list):
        yield name, dict(content)
        return
    for number, paragraph in enumerate(content["paragraphs"]):
        place = f"{name}.{number}"
        asked = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if not isinstance(asked, list):
            yield place, {"qas": asked}
            continue
        for order, question in enumerate(asked):
            found = question if isinstance(question, dict) else {}
            yield str(found.get("id") or f"{place}.{order}"), {**found, "context": paragraph.get("context")}


def _question(name: str, content: dict[str, Any], read: ReadConfig) -> Document | Dropped:
    context, question = content.get("context"), content.get("question")
    has = ", ".join(map(repr, content))
    if not isinstance(context, str) or not isinstance(question, str):
        return Dropped(name, "no_question", f"no context or question; it has {has}")
    key = next((key for key in _ANSWERS if key in content), None)
    if key is None and not content.get("is_impossible"):
        return Dropped(name, "no_answers", f"no {' or '.join(_ANSWERS)}; it has {has}")
    found = content.get(key) if key else None
    answers = [] if content.get("is_impossible") else _answers(found)
    if answers is None:
        return Dropped(name, "wrong_answer", "an answer is not text", excerpt(str(found)))
    for answer in answers:
        start, text = answer["start"], answer["text"]
        if start is not None and (start < 0 or context[start : start + len(text)] != text):
            return Dropped(name, "wrong_answer", f"{text!r} does not stand at {start} of the context")
    fields = {"context": context, "question": question, "answers": json.dumps(answers, ensure_ascii=False)}
    return named(name, fields, content, read)


def _answers(found: Any) -> list[dict[str, Any]] | None:
    """Return the answers of a question, or None if one of them is not text.

    Accepted are a list of objects (SQuAD), an object of lists (`datasets`), a list of texts, and one text.
    """
    if isinstance(found, Mapping):
        texts, starts = _listed(found.get("text")), _listed(found.get("answer_start"))
        pairs = list(itertools.zip_longest(texts, starts[: len(texts)]))
    else:
        pairs = [
            (item.get("text"), item.get("answer_start")) if isinstance(item, Mapping) else (item, None)
            for item in _listed(found)
        ]
    if not all(isinstance(text, str | int | float) and not isinstance(text, bool) for text, _ in pairs):
        return None
    return [
        {"text": str(text), "start": start if type(start) is int else None}  # not a bool
        for text, start in pairs
    ]


def _listed(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def _conversation(name: str, content: dict[str, Any], read: ReadConfig) -> Document | Dropped:
    found = next((content[key] for key in _MESSAGES if isinstance(content.get(key), list)), None)
    if not found:
        return Dropped(
            name, "no_messages", f"no {' or '.join(_MESSAGES)}; it has {', '.join(map(repr, content))}"
        )
    messages = []
    for item in found:
        role = item.get("role", item.get("from")) if isinstance(item, Mapping) else None
        text = item.get("content", item.get("value")) if isinstance(item, Mapping) else None
        if not isinstance(role, str) or not isinstance(text, str):
            return Dropped(name, "wrong_message", "a message needs role and content", excerpt(str(item)))
        messages.append({"role": _ROLES.get(role, role), "content": text})
    return named(name, {"messages": json.dumps(messages, ensure_ascii=False)}, content, read)
