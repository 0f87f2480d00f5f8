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
from collections.abc import Callable, Iterable
from itertools import accumulate, chain, filterfalse
from typing import TypeVar

from distllm.data.clean.affixes import Rules, Words, make_rules
from distllm.data.clean.punctuation import SENTENCE_ENDS, SYMBOLS

LETTERS, NO_LETTERS, SYMBOL, MORE_SYMBOL = "lnsm"

_LONG_CHUNK = 500
_MOST_REMEMBERED = 1 << 16
_MOST_JOINED = 8

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_PIECES = re.compile(f"[{_UNSPACED}]|[^{_UNSPACED}]+")
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_PLAIN_WORD = re.compile(r"\w+|[^\w\s]")
_SPANS = re.compile(r"\S+|\s+")
_FOUR_BYTES = "\U00010000"
_SENTENCE_END = re.compile(  # or any character of four bytes: a class is far faster without their ranges
    f"[{''.join(sorted(end for end in SENTENCE_ENDS if end < _FOUR_BYTES))}{_FOUR_BYTES}-\U0010ffff]"
)

Value = TypeVar("Value")


class _Memory(dict[str, Value]):
    """Values of strings, computed when first asked for, in two generations.

    When the young one is full it becomes the old one, from which what is asked for again moves back: common
    strings stay. A look-up costs half of what that of ``functools.lru_cache`` costs, which keeps an order
    of use. Long strings, which hardly come again, are not remembered.
    """

    def __init__(self, compute: Callable[[str], Value]) -> None:
        self._compute = compute
        self._old: dict[str, Value] = {}

    def __missing__(self, key: str) -> Value:
        value = self._old[key] if key in self._old else self._compute(key)
        if len(key) <= _LONG_CHUNK:
            if len(self) >= _MOST_REMEMBERED:
                self._old = dict(self)
                self.clear()
            self[key] = value
        return value


def words_of(chunks: Iterable[str]) -> list[str]:
    """Return the words of ``chunks``, which spaces part, symbols included."""
    return list(chain.from_iterable(map(_WORDS.__getitem__, chunks)))


def to_split(chunks: list[str]) -> list[str]:
    """Return those of ``chunks`` that may be something else than one word of letters.

    Most are such a word, and to tell that costs far less than to look a chunk up.
    """
    text = "".join(chunks)
    if not text.isascii() and _UNSPACED_CHARACTER.search(text):
        return chunks
    marked = list(filterfalse(str.isalpha, chunks))
    marked += filter(make_rules().contracted.__contains__, chunks)
    return marked


def kinds_of(chunks: Iterable[str]) -> str:
    """Return a letter for the kind of each word: `LETTERS`, `NO_LETTERS`, or `SYMBOL`.

    After the last, each character but the first of the symbol is a `MORE_SYMBOL`.
    """
    return "".join(map(_KINDS.__getitem__, chunks))


def count_words(text: str) -> int:
    """Return the words of ``text``: what spaces part, and each character of a script without spaces."""
    if not text.isascii() and _UNSPACED_CHARACTER.search(text):
        return sum(len(_PIECES.findall(chunk)) for chunk in text.split())
    return len(text.split())


def count_sentences(line: str) -> int:
    """Return the sentences of a line; after a word like ``.`` the next word that is none begins one."""
    first = _SENTENCE_END.search(line)
    if first is None:
        return int(bool(line))
    rest = line[line.rfind(" ", 0, first.start()) + 1 :].removesuffix(" ")
    return 1 + "".join(map(_MARKS.__getitem__, rest.split(" "))).count("ep")


def _ends_and_begins(part: str) -> str:
    """Write ``e`` for each word that ends a sentence and ``p`` for each that begins one after such an end.

    So do spaces but single ones: between two of them ``part`` is empty.
    """
    if part.isalpha() or not part:
        return "p"
    spans = (part,) if part.isprintable() else _SPANS.findall(part)
    words = chain.from_iterable([(span,) if span.isspace() else _WORDS[span] for span in spans])
    return "".join(map(_end_or_begin, words))


def _end_or_begin(word: str) -> str:
    if word in SENTENCE_ENDS:
        return "e"
    if word[0].isalnum():
        return "p"
    return "" if all(unicodedata.category(character).startswith("P") for character in word) else "p"


def _kinds(chunk: str) -> str:
    words = _WORDS[chunk]
    return LETTERS * len(words) if chunk.isalpha() else "".join(map(_kind, words))


def _kind(word: str) -> str:
    if word.isalpha():
        return LETTERS
    if SYMBOLS.issuperset(word):
        return SYMBOL + MORE_SYMBOL * (len(word) - 1)
    return LETTERS if any(map(str.isalpha, word)) else NO_LETTERS


def _words_of_chunk(chunk: str) -> Words:
    if len(chunk) > _LONG_CHUNK:
        return tuple(word for piece in _PIECES.findall(chunk) for word in _PLAIN_WORD.findall(piece))
    if chunk.isascii() or not _UNSPACED_CHARACTER.search(chunk):
        return _split(chunk, make_rules())
    words: list[str] = []
    for piece in _PIECES.findall(chunk):
        words += (piece,) if len(piece) == 1 else _split(piece, make_rules())
    return tuple(words)


def _split(chunk: str, rules: Rules) -> Words:
    special = rules.specials.get(chunk)
    if special is not None:
        return special
    if chunk.isalpha():  # no affix can be found: all of them hold a mark or a digit
        return (chunk,)
    word = chunk[:-1]
    if word.isalpha() and word not in rules.specials and rules.suffix.match(chunk[::-1]):
        return word, chunk[-1]
    prefixes, core, suffixes = _peel(chunk, rules)
    words = (*prefixes, *_split_core(core, rules), *reversed(suffixes))
    return _respell(chunk, words, rules) if len(words) > 1 else words


def _peel(chunk: str, rules: Rules) -> tuple[list[str], str, list[str]]:
    """Take prefixes and suffixes off, one of each at a time, until a special chunk or nothing more shows."""
    prefixes: list[str] = []
    suffixes: list[str] = []
    while chunk and chunk not in rules.specials and not chunk.isalpha():
        found = rules.prefix.match(chunk)
        start = found.end() if found else 0
        if start and chunk[start:] in rules.specials:
            return [*prefixes, chunk[:start]], chunk[start:], suffixes
        found = rules.suffix.match(chunk[: start - 1 if start else None : -1])
        end = len(chunk) - (found.end() if found else 0)
        if found and chunk[:end] in rules.specials:
            return prefixes, chunk[:end], [*suffixes, chunk[end:]]
        if start:
            prefixes.append(chunk[:start])
        if found:
            suffixes.append(chunk[end:])
        elif not start:
            break
        chunk = chunk[start:end]
    return prefixes, chunk, suffixes


def _split_core(core: str, rules: Rules) -> Words:
    """Split what is between prefixes and suffixes at infixes, unless it is special or an address."""
    if not core:
        return ()
    if core in rules.specials:
        return rules.specials[core]
    if core.isalnum():  # infixes hold a mark
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


def _respell(chunk: str, words: Words, rules: Rules) -> Words:
    """Join neighbouring words that together are a special chunk, such as an emoticon; longest first."""
    start = 0
    for word in words:
        if chunk[start : start + 2] in rules.heads:
            break
        start += len(word)
    else:
        return words
    ends = list(accumulate(map(len, words)))
    spans = [
        (start - stop, start, stop)
        for start, left in enumerate((0, *ends[:-1]))
        for stop, right in enumerate(ends[start : start + _MOST_JOINED], start + 1)
        if right - left <= rules.longest and chunk[left:right] in rules.respelled
    ]
    if not spans:
        return words
    taken: set[int] = set()
    chosen: dict[int, int] = {}
    for _, start, stop in sorted(spans):
        if start not in taken and stop - 1 not in taken:
            chosen[start] = stop
        taken.update(range(start, stop))
    joined: list[str] = []
    place = 0
    while place < len(words):
        stop = chosen.get(place, place + 1)
        joined += rules.specials["".join(words[place:stop])] if place in chosen else words[place:stop]
        place = stop
    return tuple(joined)


_WORDS, _KINDS, _MARKS = _Memory(_words_of_chunk), _Memory(_kinds), _Memory(_ends_and_begins)
