"""gigatoken (MIT, about 20 times as fast as `tokenizers`) where it gives the same ids, never elsewhere.

Three things keep ids equal. Texts with characters of Unicode 17 go to `tokenizers` 0.23, whose tables
end at Unicode 16 while those of gigatoken 0.10 do not; of all code points these alone differ. A probe is
compared before the first use. One text in a thousand is compared in use; a difference ends the use.

M: ids of all texts together.  D: texts.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from distllm.data.tokenizer.description import added_plain, why_not_byte_level
from distllm.data.tokenizer.packed import Backend, Packed, groups, join, pack
from distllm.data.tokenizer.probe import PROBE
from distllm.errors import MissingDependency
from distllm.extras import require
from distllm.machine import held_memory

CHECKED_SHARE = 1000  # one text in this many is encoded twice
CACHE_BYTES = 24 * 2**20
_CACHED_TEXT = 8 * 2**20  # a new engine must read so much before it goes: making one takes 0.05 s
_GROUP_BYTES = 1 << 18
# Letters, marks and digits that Unicode 17 assigned; found by comparing every code point (a slow test does).
UNICODE_17 = re.compile(
    "[\u088f\u0c5c\u0cdc\ua7ce\ua7cf\ua7d2\ua7d4\ua7f1\U00010940-\U00010959\U00010ec5-\U00010ec7"
    "\U00011db0-\U00011ddb\U00011de0-\U00011de9\U00016ea0-\U00016eb8\U00016ebb-\U00016ed3"
    "\U00016ff2-\U00016ff6\U000187f8-\U000187ff\U00018d09-\U00018d1e\U00018d80-\U00018df2"
    "\U0001e6c0-\U0001e6de\U0001e6e0-\U0001e6e2\U0001e6e4\U0001e6e5\U0001e6e7-\U0001e6ed"
    "\U0001e6f0-\U0001e6f4\U0001e6fe\U0001e6ff\U0002b73a-\U0002b73f\U0002cea2-\U0002cead"
    "\U000323b0-\U00033479]"
)
# The UTF-8 of each begins with one of these. Few texts have any, and bytes are searched much faster than
# characters, which would take as long as encoding.
_LEADS = (b"\xf0", b"\xea\x9f", b"\xe0\xa2\x8f", b"\xe0\xb1\x9c", b"\xe0\xb3\x9c")
Reference = Callable[[list[str]], Packed]


class GigatokenDisagrees(UserWarning):
    """gigatoken gave other ids than `tokenizers`, or cannot do a tokenizer it was asked to do."""


class FastEncoder:
    """gigatoken behind a verifier: the first difference from the reference turns it off for good.

    Which texts are compared depends only on the texts, so every process checks the same ones.

    gigatoken remembers the ids of every different word, without bound: of Chinese, written without
    spaces, that is nearly all of the text. So it is replaced when the process has grown by
    ``CACHE_BYTES`` since the first texts.

    Args:
        make: returns a new ``gigatoken.Tokenizer``.
        reference: returns the right ids.
        probe: texts that must agree before the first use.

    Attributes:
        trusted: whether it is still in use.
        mismatches: texts for which the two differed.
    """

    def __init__(self, make: Callable[[], Any], reference: Reference, probe: Sequence[str] = PROBE) -> None:
        self._make = make
        self._engine: Any
        self._begin()
        self._reference = reference
        self.trusted = True
        self.mismatches = 0
        probed = [text for text in probe if not UNICODE_17.search(text)]
        probed += [f"{text}\n{text}" for text in probed]
        self._compare(probed, self._run([text.encode() for text in probed]), list(range(len(probed))))

    def encode(self, texts: list[str]) -> Packed:
        """Return the ids of ``texts``; all are those of the reference once the two have differed.

        Raises:
            UnicodeEncodeError: a text holds lone surrogates.
        """
        if not self.trusted:
            return self._reference(texts)
        encoded = [text.encode() for text in texts]
        odd = [n for n, (text, raw) in enumerate(zip(texts, encoded, strict=True)) if _is_odd(text, raw)]
        if odd:
            return self._around(texts, odd)
        packed = self._run(encoded)
        chosen = [n for n, text in enumerate(encoded) if not xxhash.xxh3_64_intdigest(text) % CHECKED_SHARE]
        self._compare(texts, packed, chosen)
        return packed if self.trusted else self._reference(texts)

    def _around(self, texts: list[str], odd: list[int]) -> Packed:
        """Encode the texts numbered ``odd`` by the reference and the others as usual."""
        apart = set(odd)
        usual = [n for n in range(len(texts)) if n not in apart]
        rows: list[NDArray[np.uint32]] = [np.zeros(0, dtype=np.uint32)] * len(texts)
        for numbers, encode in ((odd, self._reference), (usual, self.encode)):
            packed = encode([texts[n] for n in numbers])
            for n, row in zip(numbers, np.split(packed.ids_M, packed.ends_D[:-1]), strict=False):
                rows[n] = row
        return pack(rows)

    def _run(self, encoded: list[bytes]) -> Packed:
        return join(self._run_group(group) for group in groups(encoded, _GROUP_BYTES))

    def _run_group(self, encoded: list[bytes]) -> Packed:
        layout = self._engine.encode_batch(encoded).layout
        bounds_D = np.asarray(layout.offsets.data, dtype=np.int64)
        ids_M = np.asarray(layout.content.data, dtype=np.uint32)
        self._bound_cache(sum(map(len, encoded)))
        return Packed(ids_M[bounds_D[0] : bounds_D[-1]], bounds_D[1:] - bounds_D[0])

    def _begin(self) -> None:
        self._engine = None  # the old one goes before there is a new one
        self._engine, self._read, self._held_at_first = self._make(), 0, 0

    def _bound_cache(self, read: int) -> None:
        self._read += read
        self._held_at_first = self._held_at_first or held_memory()
        if self._read >= _CACHED_TEXT and held_memory() > self._held_at_first + CACHE_BYTES:
            self._begin()

    def _compare(self, texts: Sequence[str], packed: Packed, chosen: Sequence[int]) -> None:
        """Encode the ``chosen`` texts again; give up and say so at the first difference."""
        if not chosen:
            return
        right = self._reference([texts[n] for n in chosen])
        rows = np.split(right.ids_M, right.ends_D[:-1])
        starts_D = np.concatenate([np.zeros(1, dtype=np.int64), packed.ends_D[:-1]])
        differing = [
            n
            for n, row in zip(chosen, rows, strict=True)
            if not np.array_equal(packed.ids_M[starts_D[n] : packed.ends_D[n]], row)
        ]
        self.mismatches += len(differing)
        if differing:
            self.trusted = False
            warnings.warn(
                f"gigatoken encodes {len(differing)} of {len(chosen)} compared texts otherwise than "
                f"tokenizers, such as {texts[differing[0]][:80]!r}: tokenizers does it from here on",
                GigatokenDisagrees,
                stacklevel=2,
            )


def _is_odd(text: str, encoded: bytes) -> bool:
    """Return whether a text has characters of Unicode 17."""
    if text.isascii() or not any(lead in encoded for lead in _LEADS):
        return False
    return UNICODE_17.search(text) is not None


def fast_encoder(
    backend: Backend, description: Mapping[str, Any], vocab: Mapping[str, int], reference: Reference
) -> FastEncoder | None:
    """Return gigatoken for this tokenizer, or None if it is not wanted, not installed or not able.

    It is used for byte-level BPE whose added tokens are all special: the class compared in tests.

    Raises:
        MissingDependency: ``backend`` is gigatoken and it is not installed.
    """
    if backend == "tokenizers":
        return None
    try:
        gigatoken = require("gigatoken", "tokenizer.backend=gigatoken")
    except MissingDependency:
        if backend == "gigatoken":
            raise
        return None
    problem = _why_not(description, vocab)
    if problem is None:
        # gigatoken makes one id of a special token that text spells; without them it is plain text
        unused = dict.fromkeys(("post_processor", "truncation", "padding"))
        try:
            content = json.dumps({**description, **unused, "added_tokens": []})
            return FastEncoder(lambda: gigatoken.Tokenizer.from_json(content), reference)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            problem = str(error)
    if backend == "gigatoken":
        warnings.warn(
            f"gigatoken cannot do this tokenizer, tokenizers does: {problem}",
            GigatokenDisagrees,
            stacklevel=2,
        )
    return None


def _why_not(description: Mapping[str, Any], vocab: Mapping[str, int]) -> str | None:
    if description["model"].get("type") != "BPE":
        return "its model is no BPE"
    if description.get("normalizer"):
        return "it normalizes text"
    if any(added_plain(description)):
        return "it has added tokens that text may spell"
    return why_not_byte_level(description, vocab)
