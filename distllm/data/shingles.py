"""Texts as sets of hashed word n-grams.

Words are runs of letters and digits, case folded; a character of a script that is written without
spaces (such as Chinese, Japanese, Thai) is a word by itself. Hashes are xxh3-64 of the UTF-8
of a word, combined over an n-gram as a polynomial, so they depend only on the text.

Shapes: N words of a text, G n-grams.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
import xxhash
from numpy.typing import NDArray

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{UNSPACED}]|[^\\W_{UNSPACED}]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
_SHIFT = np.uint64(33)


def words_of(text: str) -> list[str]:
    """Return the words of ``text``, case folded."""
    return _WORD.findall(text.casefold())


@lru_cache(maxsize=1 << 16)  # 200 bytes each
def _hash_word(word: str) -> int:
    return xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))


def hash_words(words: list[str]) -> NDArray[np.uint64]:
    """Return the hash of each word."""
    return np.fromiter(map(_hash_word, words), dtype=np.uint64, count=len(words))


def hash_ngrams(words_N: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Return the hash of each run of ``n`` words; of fewer words, one hash of all of them."""
    if words_N.size == 0:
        return words_N
    size = min(n, words_N.size)
    last = words_N.size - size + 1
    grams_G = np.zeros(last, dtype=np.uint64)
    for k in range(size):
        grams_G = grams_G * _BASE + words_N[k : k + last]
    return mix(grams_G + np.uint64(size))


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter 64 bits over 64 bits (the finaliser of MurmurHash3; products are meant to wrap)."""
    values = (values ^ (values >> _SHIFT)) * _MIX_1
    values = (values ^ (values >> _SHIFT)) * _MIX_2
    return values ^ (values >> _SHIFT)
