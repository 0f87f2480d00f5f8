import json
import random
import subprocess
import sys

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.tokenizer import EOT, LossyTokenizer, Tokenizer
from distllm.errors import TokenizerError

TEXTS = ["the quick brown fox jumps over the lazy dog. " * 30, "def f(x):\n    return x + 1\n" * 30]


@pytest.fixture(scope="module")
def trained():
    return Tokenizer.train(TEXTS, TokenizerConfig(vocab_size=300))


def test_training_learns_merges_up_to_the_vocabulary(trained):
    assert trained.vocab_size == 300
    assert trained.eot_id == 0
    assert len(trained.encode(" the quick")) < 6


def test_little_text_gives_a_smaller_vocabulary():
    assert Tokenizer.train([], TokenizerConfig(vocab_size=1000)).vocab_size == 257


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_is_the_same_in_every_process(kind):
    words = random.Random(0).choices(["alpha", "beta", "gamma", "delta", "epsilon", "zeta"], k=4000)
    script = (
        "import sys; from distllm.data.tokenizer import Tokenizer\n"
        "from distllm.config.schema_tokenizer import TokenizerConfig\n"
        f"print(Tokenizer.train(list(sys.stdin), TokenizerConfig(kind={kind!r}, vocab_size=400)).fingerprint)"
    )
    text = "\n".join(" ".join(words[i : i + 9]) for i in range(0, 4000, 9))
    runs = [
        subprocess.run(
            [sys.executable, "-c", script], input=text, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    here = Tokenizer.train(text.splitlines(keepends=True), TokenizerConfig(kind=kind, vocab_size=400))
    assert runs[0] == runs[1] == here.fingerprint + "\n"


def test_a_text_cannot_forge_a_boundary(trained):
    ids = trained.encode(f"a{EOT}b")
    assert trained.eot_id not in ids
    assert trained.decode(ids) == f"a{EOT}b"
    assert trained.decode([trained.eot_id]) == EOT


def test_byte_lengths_count_bytes_and_not_special_tokens(trained):
    lengths_V = trained.token_byte_lengths()
    assert lengths_V.shape == (300,)
    assert lengths_V[trained.eot_id] == 0
    assert lengths_V[1:257].tolist() == [1] * 256
    assert lengths_V[trained.encode("日本")].sum() == 6


def test_save_and_load_keep_everything(trained, tmp_path):
    trained.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.fingerprint == trained.fingerprint
        assert loaded.encode(TEXTS[0]) == trained.encode(TEXTS[0])
        assert (loaded.vocab_size, loaded.eot_id) == (300, 0)


def test_the_fingerprint_ignores_layout_and_sees_content(trained, tmp_path):
    trained.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content, indent=3))
    assert Tokenizer.load(tmp_path).fingerprint == trained.fingerprint
    content["model"]["merges"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).fingerprint != trained.fingerprint


def foreign(tmp_path, *, alphabet, eot, decoder=None):
    inner = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoder or decoders.ByteLevel()
    inner.add_special_tokens([eot])
    inner.add_tokens(["  é"])
    inner.enable_truncation(4)
    inner.enable_padding(length=4)
    inner.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def test_a_foreign_tokenizer_is_used_without_its_truncation_and_padding(tmp_path):
    loaded = Tokenizer.load(foreign(tmp_path, alphabet=ALPHABET, eot="</s>"))
    assert loaded.eot_id == 256
    assert len(loaded.encode("abcdefgh")) == 8
    assert len(loaded.encode("a")) == 1
    assert loaded.token_byte_lengths()[loaded.encode("a  é")].tolist() == [1, 4]


def test_tokenizers_that_lose_text_say_why(tmp_path):
    for keys, problem in [
        ({"alphabet": ALPHABET[:200], "eot": EOT}, "lacks 56 of the 256 bytes"),
        ({"alphabet": ALPHABET, "eot": EOT, "decoder": decoders.Metaspace()}, "not byte-level"),
    ]:
        with pytest.warns(LossyTokenizer, match=problem):
            loaded = Tokenizer.load(foreign(tmp_path, **keys))
        assert not loaded.lossless
        assert problem in loaded.lossless_reason
        assert loaded.token_byte_lengths() is None


def test_a_tokenizer_without_an_end_of_text_token_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match="no end-of-text token") as error:
        Tokenizer.load(foreign(tmp_path, alphabet=ALPHABET, eot="[PAD]"))
    assert error.value.remedy


@pytest.mark.parametrize("content", [b"", b"no json", b"{}", b"[]", b'{"model": 3}', b"\xff\xfe", None])
def test_files_that_are_no_tokenizer_are_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TokenizerError) as error:
        Tokenizer.load(path)
    assert str(path) in error.value.where
    assert error.value.remedy


def test_lone_surrogates_are_refused_by_name(trained):
    with pytest.raises(TokenizerError, match="UTF-8"):
        trained.encode("\ud800")
