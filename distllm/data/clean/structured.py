"""Edits of documents with several fields, some of which hold JSON.

Of a conversation the content of each message is edited, never the JSON itself. Of a question with answers
the answers are edited as the context is, and still say where they stand in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from distllm.data.records import Document, Dropped

_MESSAGES, _ANSWERS, _CONTEXT = "messages", "answers", "context"

Edit = Callable[[str, list[str]], str]
"""Edits a text and appends the names of the rules that changed it."""


def edit_fields(document: Document, edit: Edit, edited: list[str]) -> Document | Dropped:
    """Return the document with the text of every field edited; ``edited`` gets the rules that changed it.

    It is dropped (``answer_lost``) when an edited answer no longer stands in the edited context.
    """
    fields = {}
    for name, text in document.fields.items():
        if name == _MESSAGES:
            fields[name] = _edit_messages(text, edit, edited)
        elif name != _ANSWERS:
            fields[name] = edit(text, edited)
        else:
            answers = _edit_answers(document.fields, edit, edited)
            if answers is None:
                return Dropped.of(document, "answer_lost", "an answer does not stand in the cleaned context")
            fields[name] = answers
    return Document(document.id, fields, document.language)


def _edit_messages(text: str, edit: Edit, edited: list[str]) -> str:
    before = json.loads(text)
    after = [{**message, "content": edit(message["content"], edited)} for message in before]
    return text if after == before else json.dumps(after, ensure_ascii=False)


def _edit_answers(fields: Mapping[str, str], edit: Edit, edited: list[str]) -> str | None:
    before = json.loads(fields[_ANSWERS])
    context = fields.get(_CONTEXT, "")
    cleaned = edit(context, [])
    after: list[dict[str, Any]] = []
    for answer in before:
        text, start = edit(answer["text"], edited), answer["start"]
        if start is not None:
            start = _nearest(text, cleaned, len(edit(context[:start], [])))
            if start is None:
                return None
        after.append({"text": text, "start": start})
    return fields[_ANSWERS] if after == before else json.dumps(after, ensure_ascii=False)


def _nearest(text: str, context: str, place: int) -> int | None:
    """Return where ``text`` stands in ``context``, nearest to ``place``; the earlier of two as near."""
    if not text:
        return None
    before = context.rfind(text, 0, place + len(text))
    after = context.find(text, place)
    found = [start for start in (before, after) if start >= 0]
    return min(found, key=lambda start: (abs(start - place), start), default=None)
