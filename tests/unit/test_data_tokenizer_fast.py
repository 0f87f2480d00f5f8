"""gigatoken behind its verifier: ids are those of `tokenizers`, whatever it does."""

import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
import xxhash
from tokenizers import models, pre_tokenizers

from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.tokenizer import EOT, Tokenizer
from distllm.data.tokenizer.fast import CHECKED_SHARE, UNICODE_17, FastEncoder, GigatokenDisagrees, _is_odd
from distllm.data.tokenizer.packed import Packed, pack
from distllm.data.tokenizer.probe import PROBE
from distllm.errors import MissingDependency, TokenizerError

TEXTS = ["the quick brown fox's jump over the lazy dog. " * 30, "def f(x):\n    return x + 1\n" * 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(TEXTS, TokenizerConfig(vocab_size=400)).save(directory)
    return directory


@pytest.fixture(scope="module")
def both(folder):
    return Tokenizer.load(folder, backend="auto"), Tokenizer.load(folder)


def test_auto_is_gigatoken_and_agrees_on_the_probe(both):
    fast, slow = both
    assert (fast.backend, slow.backend) == ("gigatoken", "tokenizers")
    texts = [*PROBE, f"a{EOT}b", "", *TEXTS]
    assert fast.encode_batch(texts) == slow.encode_batch(texts)
    assert (fast.mismatches, fast.fingerprint) == (0, slow.fingerprint)
    assert fast.encode_batch([]) == []


def test_characters_of_unicode_17_are_left_to_tokenizers(both):
    fast, slow = both
    odd = ["\u088f's", "\U00033000's x", "\U000323b0\U000323b1 \U00010940's"]
    raw = fast._encoder._fast._run([text.encode() for text in odd])
    assert raw.ids_M.tolist() != slow.encode_packed(odd).ids_M.tolist()  # the class exists
    texts = ["plain", odd[0], "", *odd[1:], "end"]
    assert fast.encode_batch(texts) == slow.encode_batch(texts)
    assert fast.backend == "gigatoken"


def test_every_character_of_unicode_17_is_seen_in_any_text():
    points = map(chr, [*range(0xD800), *range(0xE000, 0x110000)])
    odd = [character for character in points if UNICODE_17.match(character)]
    assert len(odd) > 4000
    assert all(_is_odd(text, text.encode()) for text in (f"straße {c}" for c in odd))
    others = ["\ua7cd\ua7f2", "\u088e\u0890", "\U0001f600", *PROBE]
    assert not any(_is_odd(text, text.encode()) for text in others if not UNICODE_17.search(text))


@pytest.mark.slow
def test_no_other_code_point_differs(both):
    fast, slow = both
    # No character is in planes 4 to 13, and 15 and 16 are for private use: one of a hundred stands for all.
    planes = [range(0xD800), range(0xE000, 0x40000), range(0x40000, 0x110000, 97), range(0xE0000, 0xF0000)]
    points = sorted({point for plane in planes for point in plane})
    for start in range(0, len(points), 40_000):
        characters = [c for c in map(chr, points[start : start + 40_000]) if not UNICODE_17.match(c)]
        texts = [f"a{c}b {c} {c}1{c}'s {c}{c}\n{c} " for c in characters]
        ours, theirs = (t.encode_packed(texts) for t in (fast, slow))
        np.testing.assert_array_equal(ours.ends_D, theirs.ends_D)
        np.testing.assert_array_equal(ours.ids_M, theirs.ids_M)
    assert fast.backend == "gigatoken"


class Engine:
    """Stands for gigatoken: one id a byte, and wrong where it is told to be."""

    def __init__(self, wrong=()):
        self.wrong = wrong
        self.calls = 0
        self.seen = set()

    def encode_batch(self, encoded):
        self.calls += 1
        self.seen.update(encoded)
        packed = pack([[7] if text.decode() in self.wrong else list(text) for text in encoded])
        bounds = np.concatenate([[0], packed.ends_D])
        offsets, content = SimpleNamespace(data=bounds), SimpleNamespace(data=packed.ids_M)
        return SimpleNamespace(layout=SimpleNamespace(offsets=offsets, content=content))


def reference(texts):
    return pack([list(text.encode()) for text in texts])


def chosen_text():
    """Return a text that the verifier compares in use."""
    return next(
        f"text {n}"
        for n in range(10**6)
        if not xxhash.xxh3_64_intdigest(f"text {n}".encode()) % CHECKED_SHARE
    )


def test_a_difference_in_use_ends_it_and_encodes_the_call_again():
    checked = chosen_text()
    engine = Engine(wrong=(checked, "unchecked"))
    fast = FastEncoder(lambda: engine, reference)
    assert fast.encode(["unchecked"]).ids_M.tolist() == [7]  # only one in a thousand is compared
    with pytest.warns(GigatokenDisagrees, match="1 of 1 compared"):
        again = fast.encode(["unchecked", checked, "fine"])
    assert again.ids_M.tolist() == list(f"unchecked{checked}fine".encode())
    assert (fast.trusted, fast.mismatches) == (False, 1)
    calls = engine.calls
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it warns once
        assert fast.encode(["unchecked"]).ids_M.tolist() == list(b"unchecked")
    assert engine.calls == calls


def test_a_difference_on_the_probe_forbids_it():
    with pytest.warns(GigatokenDisagrees, match="otherwise than tokenizers"):
        fast = FastEncoder(lambda: Engine(wrong=(PROBE[0],)), reference)
    assert not fast.trusted


def test_groups_encoded_before_the_difference_are_encoded_again(folder, monkeypatch):
    monkeypatch.setattr("distllm.data.tokenizer.encoder._GROUP_CHARS", 10)
    fast, slow = Tokenizer.load(folder, backend="gigatoken"), Tokenizer.load(folder)
    checked = chosen_text()
    right = fast._encoder._fast._run

    def wrong(encoded):
        packed = right(encoded)
        return Packed(packed.ids_M + np.uint32(1), packed.ends_D)

    monkeypatch.setattr(fast._encoder._fast, "_run", wrong)
    texts = ["first group", "second group", checked, "last group"]
    with pytest.warns(GigatokenDisagrees):
        ids = fast.encode_batch(texts)
    assert ids == slow.encode_batch(texts)
    assert (fast.backend, fast.mismatches) == ("tokenizers", 1)


def test_what_gigatoken_remembers_is_bounded(monkeypatch):
    engines = []

    def make():
        engines.append(Engine())
        return engines[-1]

    def held():
        return sum(map(len, engines[-1].seen))

    monkeypatch.setattr("distllm.data.tokenizer.fast.held_memory", held)
    monkeypatch.setattr("distllm.data.tokenizer.fast.CACHE_BYTES", 3000)
    monkeypatch.setattr("distllm.data.tokenizer.fast._CACHED_TEXT", 2000)
    monkeypatch.setattr("distllm.data.tokenizer.fast._GROUP_BYTES", 100)
    texts = [f"{number:050d}" for number in range(400)]
    ids_M, ends_D = FastEncoder(make, reference).encode(texts)
    assert bytes(ids_M.tolist()) == "".join(texts).encode()
    assert ends_D.tolist() == list(range(50, 20_001, 50))
    assert max(sum(map(len, engine.seen)) for engine in engines[-5:]) < 3500  # those before saw the probe too


def test_what_gigatoken_cannot_do_is_said_if_it_was_asked_for(tmp_path):
    Tokenizer.train(TEXTS, TokenizerConfig(kind="unigram", vocab_size=300)).save(tmp_path)
    with pytest.warns(GigatokenDisagrees, match="no BPE"):
        asked = Tokenizer.load(tmp_path, backend="gigatoken")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet = Tokenizer.load(tmp_path, backend="auto")
    assert asked.backend == quiet.backend == "tokenizers"


@pytest.mark.parametrize("trait", ["normalizer", "added"])
def test_tokenizers_outside_the_compared_class_are_left_to_tokenizers(tmp_path, trait):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens([EOT])
    if trait == "normalizer":
        inner.normalizer = tokenizers.normalizers.NFC()
    else:
        inner.add_tokens(["<tool>"])
    inner.save(str(tmp_path / "tokenizer.json"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Tokenizer.load(tmp_path, backend="auto").backend == "tokenizers"


def test_a_missing_gigatoken_matters_only_where_it_is_asked_for(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    assert Tokenizer.load(folder, backend="auto").backend == "tokenizers"
    with pytest.raises(MissingDependency, match="gigatoken"):
        Tokenizer.load(folder, backend="gigatoken")


def test_lone_surrogates_are_refused_by_name(both):
    for tokenizer in both:
        with pytest.raises(TokenizerError, match="UTF-8"):
            tokenizer.encode_packed(["fine", "\ud800"])


def test_a_long_text_is_cut_without_a_trace(both, monkeypatch):
    text = "".join(f"word{n}'s  {n}\n\n  über\t漢字 " for n in range(400)) + "x" * 500 + " \x1c \u3000 y" * 50
    whole = [tokenizer.encode(text) for tokenizer in both]
    monkeypatch.setattr("distllm.data.tokenizer.encoder._PIECE_CHARS", 37)
    monkeypatch.setattr("distllm.data.tokenizer.encoder._GROUP_CHARS", 90)
    for tokenizer in both:
        pieces, counts = tokenizer._encoder._pieces([text, ""])
        assert len(pieces) > 100
        assert (counts[1], "".join(pieces)) == (1, text)
        ids = tokenizer.encode_batch(["a", text, "", text, "b"])
        assert ids[1] == ids[3] == whole[0] == whole[1]
        assert [ids[0], ids[2], ids[4]] == [tokenizer.encode("a"), [], tokenizer.encode("b")]
