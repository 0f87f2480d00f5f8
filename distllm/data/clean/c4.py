"""The rules of C4: lines that are removed from a document, and documents that are dropped."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from distllm.config.schema_clean import C4Config
from distllm.data.clean.quality import Verdict
from distllm.data.clean.tokens import count_sentences

_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_SENTENCE_END = (".", "?", "!", '"', "'")
_SCRIPT = "javascript"
_LOREM_IPSUM = "lorem ipsum"
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_STEMS = (b"cookie", b"javascript", b"privacy policy", b"terms of use", b"lorem ipsum")
"""Each phrase holds one of them."""
_KELVIN = "\u212a"
_NO_C4 = C4Config()


def apply_c4(text: str, config: C4Config) -> tuple[str, Verdict | None]:
    """Return the text without the lines that go, and why the document is dropped, if it is.

    Blank lines stay, so that paragraphs do.
    """
    if config == _NO_C4:
        return text, None
    telling = _telling_phrases(text)
    bracket = config.curly_bracket and "{" in text
    form = _form_of(text, config)
    kept: list[str] = []
    sentences = 0
    for raw in text.splitlines():
        line = form(raw.strip())
        if line is None:
            continue
        phrases = [phrase for phrase in telling if phrase in line.lower()] if telling else telling
        if config.lorem_ipsum and _LOREM_IPSUM in phrases:
            return text, ("c4_lorem_ipsum", "it holds the printer's nonsense text lorem ipsum")
        if config.boilerplate and _SCRIPT in phrases:
            continue
        if bracket and "{" in line:
            return text, ("c4_curly_bracket", "it holds a curly bracket, as code does")
        if config.boilerplate and any(phrase in _POLICY for phrase in phrases):
            continue
        if config.min_sentences is not None and sentences < config.min_sentences:
            sentences += count_sentences(line)
        kept.append(line)
    if config.min_sentences is not None and sentences < config.min_sentences:
        reason = f"{sentences} sentences, at least {config.min_sentences:.4g}"
        return text, ("c4_few_sentences", reason)
    return "\n".join(kept).strip("\n"), None


def _telling_phrases(text: str) -> list[str]:
    """Return the phrases that stand somewhere in the text: most texts hold none, and no line is searched."""
    text = _CITATION.sub("", text) if "[" in text else text
    # Lower case of ASCII is far faster, and but for the Kelvin sign no other letter becomes one of it alone.
    lowered = text.replace(_KELVIN, "k").encode("ascii", "replace").lower()
    if not any(map(lowered.__contains__, _STEMS)):
        return []
    return [phrase for phrase in (_LOREM_IPSUM, _SCRIPT, *_POLICY) if phrase.encode() in lowered]


def _form_of(text: str, config: C4Config) -> Callable[[str], str | None]:
    """Return what takes citation marks off a line of ``text``, or returns None where it goes for its form.

    Words are counted with citation marks, as datatrove counts them.
    """
    longest = config.max_word_length if config.max_word_length is not None else math.inf
    fewest = 0 if config.min_line_words is None else math.ceil(config.min_line_words)
    citations = config.boilerplate and "[" in text

    def form(line: str) -> str | None:
        if not line:
            return line
        if len(line) > longest and any(len(word) > longest for word in line.split()):
            return None
        few = len(line.split(None, fewest)) < fewest
        if citations and "[" in line:
            line = _CITATION.sub("", line)
        if config.terminal_punctuation and (not line.endswith(_SENTENCE_END) or line.endswith("...")):
            return None
        return None if few else line

    return form
