"""The words and sentences that the published rules count: those of spaCy's English tokenizer, cached.

Gopher's, C4's and FineWeb's thresholds are applied to these words by datatrove, so equal verdicts need
equal words. Affixes are peeled off chunks without spaces, contractions and abbreviations are looked up,
and what is left is split at infixes. Most chunks of a text were seen before, so most cost one look-up.

Two things differ by intention. A character of a script that is written without spaces is a word of its
own; and chunks of more than 500 characters are split by a plainer expression, in linear time.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from distllm.data.clean.affixes import Rules, Words, make_rules
from distllm.data.clean.punctuation import SENTENCE_ENDS

_LONG_CHUNK = 500
_CACHED_CHUNKS = 1 << 16
_MOST_JOINED = 8

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_PIECES = re.compile(f"[{_UNSPACED}]|[^{_UNSPACED}]+")
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_PLAIN_WORD = re.compile(r"\w+|[^\w\s]")
_SPANS = re.compile(r"\S+|\s{2,}|[^\S ]")


def words_of(text: str) -> list[str]:
    """Return the words of ``text``, symbols included."""
    found: list[str] = []
    extend, split = found.extend, _words_of_chunk
    for chunk in text.split():
        extend(split(chunk))
    return found


def count_words(text: str) -> int:
    """Return the words of ``text``: what spaces part, and each character of a script without spaces."""
    if not text.isascii() and _UNSPACED_CHARACTER.search(text):
        return sum(len(_PIECES.findall(chunk)) for chunk in text.split())
    return len(text.split())


def count_sentences(line: str) -> int:
    """Return the sentences of a line; after a word like ``.`` the next word that is none begins one."""
    sentences, ended = int(bool(line)), False
    for span in _SPANS.findall(line):
        for word in (span,) if span.isspace() else _words_of_chunk(span):
            if word in SENTENCE_ENDS:
                ended = True
            elif ended and not _is_punctuation(word):
                sentences, ended = sentences + 1, False
    return sentences


@lru_cache(maxsize=1 << 12)
def _is_punctuation(word: str) -> bool:
    return all(unicodedata.category(character).startswith("P") for character in word)


@lru_cache(maxsize=_CACHED_CHUNKS)
def _words_of_chunk(chunk: str) -> Words:
    if len(chunk) > _LONG_CHUNK:
        return tuple(word for piece in _PIECES.findall(chunk) for word in _PLAIN_WORD.findall(piece))
    if chunk.isascii():
        return _split(chunk, make_rules())
    return tuple(word for piece in _PIECES.findall(chunk) for word in _split(piece, make_rules()))


def _has_letters_only(chunk: str) -> bool:
    """Whether no affix can be found: all of them hold a mark, a digit or a letter beyond ASCII."""
    return chunk.isascii() and chunk.isalpha()


def _split(chunk: str, rules: Rules) -> Words:
    special = rules.specials.get(chunk)
    if special is not None:
        return special
    if _has_letters_only(chunk):
        return (chunk,)
    prefixes, core, suffixes = _peel(chunk, rules)
    words = (*prefixes, *_split_core(core, rules), *reversed(suffixes))
    return _respell(words, rules) if len(words) > 1 else words


def _peel(chunk: str, rules: Rules) -> tuple[list[str], str, list[str]]:
    """Take prefixes and suffixes off, one of each at a time, until a special chunk or nothing more shows."""
    prefixes: list[str] = []
    suffixes: list[str] = []
    while chunk and chunk not in rules.specials and not _has_letters_only(chunk):
        found = rules.prefix.match(chunk)
        start = found.end() if found else 0
        if start and chunk[start:] in rules.specials:
            return [*prefixes, chunk[:start]], chunk[start:], suffixes
        found = rules.suffix.search(chunk[start:])
        end = len(chunk) - (len(found[0]) if found else 0)
        if found and chunk[:end] in rules.specials:
            return prefixes, chunk[:end], [*suffixes, chunk[end:]]
        if start:
            prefixes.append(chunk[:start])
        if found:
            suffixes.append(chunk[end:])
        if not start and not found:
            break
        chunk = chunk[start:end]
    return prefixes, chunk, suffixes


def _split_core(core: str, rules: Rules) -> Words:
    """Split what is between prefixes and suffixes at infixes, unless it is special or an address."""
    if not core:
        return ()
    if core in rules.specials:
        return rules.specials[core]
    if _has_letters_only(core):
        return (core,)
    if "." in core and rules.address.match(core):
        return (core,)
    words: list[str] = []
    start = 0
    for infix in rules.infix.finditer(core):
        if infix.start() == 0:
            continue
        if infix.start() != start:
            words.append(core[start : infix.start()])
        words.append(infix[0])
        start = infix.end()
    if start < len(core):
        words.append(core[start:])
    return tuple(words)


def _respell(words: Words, rules: Rules) -> Words:
    """Join neighbouring words that together are a special chunk, such as an emoticon; longest first."""
    spans = sorted(
        (start - end, start, end)
        for start in range(len(words))
        for end in range(start + 1, min(len(words), start + _MOST_JOINED) + 1)
        if "".join(words[start:end]) in rules.respelled
    )
    if not spans:
        return words
    taken: set[int] = set()
    chosen: dict[int, int] = {}
    for _, start, end in spans:
        if start not in taken and end - 1 not in taken:
            chosen[start] = end
        taken.update(range(start, end))
    joined: list[str] = []
    place = 0
    while place < len(words):
        end = chosen.get(place, place + 1)
        joined += rules.specials["".join(words[place:end])] if place in chosen else words[place:end]
        place = end
    return tuple(joined)
