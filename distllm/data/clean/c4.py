"""The rules of C4: lines that are removed from a document, and documents that are dropped."""

from __future__ import annotations

import re

from distllm.config.schema_clean import C4Config
from distllm.data.clean.quality import Verdict

_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_SENTENCE_END = (".", "?", "!", '"', "'")
_SENTENCE = re.compile(r"(?:(?<!\.)\.(?!\.)|[!?]|[。！？])+[\"'”’)\]]*(?=\s|$|(?<=[。！？]))")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def apply_c4(text: str, config: C4Config) -> tuple[str, Verdict | None]:
    """Return the text without the lines that go, and why the document is dropped, if it is."""
    if config == C4Config():
        return text, None
    kept: list[str] = []
    sentences = 0
    for raw in text.splitlines():
        line = raw.strip()
        if not line:
            kept.append("")
            continue
        if config.boilerplate:
            line = _CITATION.sub("", line)
        if _goes_early(line, config):
            continue
        lowered = line.lower()
        if config.lorem_ipsum and "lorem ipsum" in lowered:
            return text, ("c4_lorem_ipsum", "it holds the printer's nonsense text lorem ipsum")
        if config.boilerplate and "javascript" in lowered:
            continue
        if config.curly_bracket and "{" in line:
            return text, ("c4_curly_bracket", "it holds a curly bracket, as code does")
        if config.boilerplate and any(phrase in lowered for phrase in _POLICY):
            continue
        if config.min_sentences is not None and sentences < config.min_sentences:
            sentences += count_sentences(line)
        kept.append(line)
    if config.min_sentences is not None and sentences < config.min_sentences:
        reason = f"{sentences} sentences, at least {config.min_sentences:.4g}"
        return text, ("c4_few_sentences", reason)
    return "\n".join(kept).strip("\n"), None


def _goes_early(line: str, config: C4Config) -> bool:
    """Whether a line goes for its form, before what it says is looked at."""
    words = line.split()
    longest = config.max_word_length
    if longest is not None and len(line) > longest and any(len(word) > longest for word in words):
        return True
    if config.terminal_punctuation and (not line.endswith(_SENTENCE_END) or line.endswith("...")):
        return True
    return config.min_line_words is not None and len(words) < config.min_line_words


def count_sentences(line: str) -> int:
    """Return the sentences of a line: its ends of sentences, and 1 for what follows the last one."""
    ends = list(_SENTENCE.finditer(line))
    rest = line[ends[-1].end() :] if ends else line
    return len(ends) + bool(rest.strip())
