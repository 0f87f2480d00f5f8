"""One document through all rules of a profile, the cheap ones first.

edits → length → language → stop words of Gopher → C4 → Gopher quality → FineWeb → repetition → own filters
→ lower case, stop words. Gopher's rules see the text before C4's remove lines and FineWeb's the text after
it, as in the chain that published them: the outcome is that of their order, in which the expensive ones come
first. Of several rules that refuse a document, that which is asked first is named.

Edits are idempotent: a cleaned text is not edited again. Verdicts are those of the text as it came, so a
document that has lost lines or stop words may be refused, or lose more lines, when it is cleaned once more.
"""

from __future__ import annotations

import re
from dataclasses import replace

from distllm.config.schema_clean import CleanConfig
from distllm.data.clean.c4 import apply_c4
from distllm.data.clean.edits import edits_of
from distllm.data.clean.filters import find_filters
from distllm.data.clean.language import detect_language
from distllm.data.clean.measures import Measures
from distllm.data.clean.quality import judge_fineweb, judge_gopher, judge_stop_words
from distllm.data.clean.repetition import judge_repetition
from distllm.data.clean.structured import edit_fields
from distllm.data.clean.words import lower, without_stop_words
from distllm.data.records import TEXT, Document, Dropped

_MOST_PASSES = 10
_LINE_BREAKS = re.compile(r"\n{2,}")


class Cleaner:
    """Applies ``config`` to documents; the same document always has the same outcome."""

    def __init__(self, config: CleanConfig) -> None:
        self._config = config
        self._edits = edits_of(config)
        self._filters = find_filters(config.filters)
        self._lines_only = replace(config.c4, curly_bracket=False, lorem_ipsum=False, min_sentences=None)

    def __call__(self, document: Document) -> tuple[Document | Dropped, list[str]]:
        """Return what is left of ``document``, or why it goes; and the names of the edits that changed it.

        Quality is judged of plain documents only. Of others every field is edited, and none may be
        left empty.
        """
        edited: list[str] = []
        item = edit_fields(document, self._edit, edited)
        if isinstance(item, Document):
            item = self._short(item) or self._language(item)
        if isinstance(item, Document) and tuple(item.fields) == (TEXT,):
            item = self._judge(item, edited)
        if isinstance(item, Document):
            item = self._own(item, edited)
        if isinstance(item, Document):
            item = self._baseline(item, edited)
        return item, list(dict.fromkeys(edited))

    def _edit(self, text: str, edited: list[str]) -> str:
        """Apply the edits; with repair until nothing changes, because the others can show more to repair."""
        for _ in range(_MOST_PASSES if self._config.repair else 1):
            before = text
            for name, edit in self._edits.items():
                changed = edit(text)
                if changed != text:
                    edited.append(name)
                    text = changed
            if text == before or text.isascii():
                break
        return text

    def _short(self, document: Document) -> Dropped | None:
        least = max(1, self._config.min_chars)
        if tuple(document.fields) == (TEXT,) and len(document.text) < least:
            reason = (
                f"{len(document.text)} characters after cleaning, clean.min_chars={self._config.min_chars}"
            )
            return Dropped.of(document, "too_short", reason)
        empty = [name for name, text in document.fields.items() if not text.strip()]
        if empty:
            return Dropped.of(document, "empty_field", f"nothing in the field {', '.join(empty)}")
        return None

    def _language(self, document: Document) -> Document | Dropped:
        config, language = self._config, document.language
        if not language and (config.detect_language or config.languages):
            language, probability = detect_language(document.text)
            if config.languages and probability < config.language_threshold:
                reason = (
                    f"{language} with probability {probability:.2f}, at least {config.language_threshold:.2f}"
                )
                return Dropped.of(document, "language_unclear", reason)
        if config.languages and language not in config.languages:
            return Dropped.of(document, "language", f"its language is {language}")
        return document if language == document.language else replace(document, language=language)

    def _judge(self, document: Document, edited: list[str]) -> Document | Dropped:
        """Apply the published rules, each to the text before or after C4's, as their chain does."""
        config, text = self._config, document.text
        measures = Measures(text)
        verdict = judge_stop_words(measures, config.gopher, document.language)
        if verdict is None:
            text, verdict = apply_c4(text, config.c4)
        verdict = (
            verdict
            or judge_gopher(measures, config.gopher)
            or judge_fineweb(self._for_fineweb(measures, text), config.fineweb)
            or judge_repetition(measures, config.repetition)
        )
        if verdict is not None:
            return Dropped.of(document, *verdict)
        if text == document.text:
            return document
        edited.append("c4_lines")
        document = Document.from_text(document.id, self._without_lines(text, edited), document.language)
        return self._short(document) or document

    def _for_fineweb(self, before: Measures, text: str) -> Measures:
        """Return the text after C4's rules, which leave no blank lines; here they stay, but do not count."""
        if self._config.c4.min_line_words and "\n\n" in text:
            return Measures(_LINE_BREAKS.sub("\n", text))
        return before if text == before.text else Measures(text)

    def _without_lines(self, text: str, edited: list[str]) -> str:
        """Edit until nothing changes: without its citation mark a line may go that stayed with it."""
        while True:
            text = self._edit(text, edited)
            again, _ = apply_c4(text, self._lines_only)
            if again == text:
                return text
            text = again

    def _own(self, document: Document, edited: list[str]) -> Document | Dropped:
        for name, keep in zip(self._config.filters, self._filters, strict=True):
            answer = keep(document)
            if isinstance(answer, str):
                return Dropped.of(document, name, answer)
            if answer.fields != document.fields:
                edited.append(name)
            document = answer
        return document

    def _baseline(self, document: Document, edited: list[str]) -> Document | Dropped:
        config = self._config
        if not config.lower_case and config.stop_words == "keep":
            return document

        def reduce(text: str, _: list[str]) -> str:
            text = lower(text, document.language) if config.lower_case else text
            return without_stop_words(text, document.language) if config.stop_words == "remove" else text

        item = edit_fields(document, reduce, edited)
        if isinstance(item, Dropped) or item.fields == document.fields:
            return item
        edited.append("baseline")
        item = edit_fields(item, self._edit, edited)
        return (self._short(item) or item) if isinstance(item, Document) else item
