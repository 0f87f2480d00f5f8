"""Tokenizers of other origins are used as they are (BERT, T5, Llama 2); what training can be told."""

import json
import warnings

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.tokenizer import EOT, LossyTokenizer, Tokenizer, training_texts
from distllm.errors import ConfigError, TokenizerError

TEXTS = ["the quick brown fox jumps over the lazy dog. " * 30, "def f(x):\n    return x + 1\n" * 30]


def bert():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "SEP", "the", "cat", "##s", "[", "]", "a", "b"]
    inner = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return inner, {"sep_token": "[SEP]"}, ["[CLS]", "[SEP]"]


def t5():
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁the", -2.5), ("▁cat", -3.0)]
    pieces += [(c, -6.0) for c in "thecasbd</>"]
    inner = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return inner, {"eos_token": {"content": "</s>", "lstrip": False}}, ["</s>"]


def llama2():
    names = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁", *"thecasbd<>/", "th", "the"]
    model = models.BPE(
        {name: n for n, name in enumerate(names)}, [("t", "h"), ("th", "e")],
        unk_token="<unk>", byte_fallback=True, fuse_unk=True,
    )  # fmt: skip
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(steps)
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    return inner, {"eos_token": "</s>", "bos_token": "<s>"}, ["</s>"]


def write(directory, inner, settings, name="tokenizer_config.json"):
    inner.enable_truncation(3)
    inner.save(str(directory / "tokenizer.json"))
    (directory / name).write_text(json.dumps(settings))
    with pytest.warns(LossyTokenizer, match="loses text: it is not byte-level"):
        return Tokenizer.load(directory, backend="auto")


@pytest.mark.parametrize("style", [bert, t5, llama2])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_foreign_styles_give_their_own_ids_and_say_that_they_lose_text(tmp_path, style, name):
    inner, settings, _ = style()
    loaded = write(tmp_path, inner, settings, name)
    inner.no_truncation()
    assert (loaded.lossless, loaded.backend) == (False, "tokenizers")
    assert "not byte-level" in loaded.lossless_reason
    assert loaded.token_byte_lengths() is None
    end = settings.get("eos_token", settings.get("sep_token"))
    assert loaded.eot_id == inner.token_to_id(end["content"] if isinstance(end, dict) else end)
    for text in ("the cats", "the cat a b", "日本 the"):
        assert loaded.encode(text) == inner.encode(text, add_special_tokens=False).ids
    assert loaded.decode(loaded.encode("the cat")).strip() == "the cat"


@pytest.mark.parametrize("style", [bert, t5, llama2])
def test_no_text_of_a_foreign_style_spells_a_special_token(tmp_path, style):
    inner, settings, special = style()
    loaded = write(tmp_path, inner, settings)
    for name in special:
        id_ = inner.token_to_id(name)
        for text in (name, f"a{name}b", f"the {name} cat", name * 2):
            assert id_ not in loaded.encode(text)


def test_the_fingerprint_ignores_truncation_and_the_form_of_merges_and_sees_the_end(tmp_path):
    inner, settings, _ = llama2()
    prints = [write(tmp_path, inner, settings).fingerprint]
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    content["truncation"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(dict(reversed(content.items())), indent=1))
    for settings_text in (json.dumps(settings), '{"eos_token": "<s>"}'):
        (tmp_path / "tokenizer_config.json").write_text(settings_text)
        with pytest.warns(LossyTokenizer):
            prints.append(Tokenizer.load(tmp_path).fingerprint)
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"normalizer": {"type": "NFC"}}, "changes text before encoding .NFC"),
     ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                         "use_regex": True}}, "a space before the text")],
)  # fmt: skip
def test_byte_level_tokenizers_that_change_text_say_so_and_count_bytes(tmp_path, change, reason):
    Tokenizer.train(TEXTS, TokenizerConfig(vocab_size=300)).save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | change))
    with pytest.warns(LossyTokenizer, match=reason):
        loaded = Tokenizer.load(tmp_path)
    assert loaded.token_byte_lengths() is not None


def test_an_end_that_text_can_spell_is_refused(tmp_path):
    inner, _, _ = bert()
    inner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "cat"}')
    with pytest.raises(TokenizerError, match="cat can be spelled"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["no json", "[]"])
def test_settings_that_are_no_object_are_refused(tmp_path, content):
    Tokenizer.train([], TokenizerConfig(vocab_size=258)).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json"):
        Tokenizer.load(tmp_path)


TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("as_file", [True, False])
def test_transformers_loads_the_saved_folder_with_its_template(tmp_path, kind, as_file):
    from transformers import AutoTokenizer

    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    given = str(tmp_path / "chat.jinja") if as_file else TEMPLATE
    special = ("<|im_start|>", "<|im_end|>")
    config = TokenizerConfig(kind=kind, vocab_size=330, special_tokens=special, chat_template=given)
    ours = Tokenizer.train(TEXTS, config)
    ours.save(tmp_path / "out", max_length=77)
    theirs, again = AutoTokenizer.from_pretrained(tmp_path / "out"), Tokenizer.load(tmp_path / "out")
    text = " the quick\n\n  naïve 日本 🙂 "
    assert theirs(text)["input_ids"] == ours.encode(text) == again.encode(text)
    assert theirs.decode(ours.encode(text)) == text
    assert (theirs.eos_token, theirs.model_max_length) == (EOT, 77)
    chat = [{"role": "user", "content": "hi"}]
    rendered = theirs.apply_chat_template(chat, tokenize=False)
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n"
    ids = theirs(rendered)["input_ids"]
    assert ids[0] == theirs.convert_tokens_to_ids("<|im_start|>") not in ours.encode(rendered)
    assert again.chat_template == ours.chat_template == TEMPLATE
    assert again.fingerprint == ours.fingerprint
    other = Tokenizer.load(tmp_path / "out", chat_template="{{ messages }}")
    assert (other.chat_template, other.fingerprint) == ("{{ messages }}", ours.fingerprint)


@pytest.mark.parametrize(
    ("keys", "where"),
    [({"special_tokens": ("word",)}, "special_tokens"),
     ({"special_tokens": ("<|a|>", "<|a|>")}, "special_tokens"),
     ({"special_tokens": (EOT,)}, "special_tokens"), ({"special_tokens": ("",)}, "special_tokens"),
     ({"special_tokens": ("<|a|>", "<|b|>"), "vocab_size": 258}, "vocab_size"),
     ({"kind": "unigram", "min_frequency": 5}, "min_frequency"),
     ({"chat_template": "missing"}, "chat_template")],
)  # fmt: skip
def test_training_keys_that_cannot_work_are_named(keys, where):
    with pytest.raises(ConfigError) as error:
        Tokenizer.train(TEXTS, TokenizerConfig(**keys))
    assert error.value.where == f"tokenizer.{where}"
    assert error.value.remedy


def test_rare_pairs_are_not_merged():
    sizes = [Tokenizer.train(["abc " * 3], TokenizerConfig(min_frequency=n)).vocab_size for n in (2, 4)]
    assert sizes[0] > sizes[1] == 257


def test_surrogates_in_training_text_are_named():
    with pytest.raises(TokenizerError, match="UTF-8"):
        Tokenizer.train(["\ud800"], TokenizerConfig(vocab_size=258))


PAIRS = [(f"doc-{n}", f"{n:04d}" * 25) for n in range(2000)]


def test_training_text_is_an_even_choice_that_no_order_changes():
    config = TokenizerConfig(train_bytes=50_000)
    chosen = list(training_texts(iter(PAIRS), config, 200_000))
    assert 0.9 * 50_000 < sum(map(len, chosen)) <= 50_000
    numbers = [int(text[:4]) for text in chosen]
    assert all(70 < sum(low <= n < low + 500 for n in numbers) < 180 for low in range(0, 1900, 500))
    lasting = list(training_texts(iter(PAIRS[:1500][::-1]), config, 200_000))
    assert lasting[::-1] == [text for text in chosen if int(text[:4]) < 1500]


def test_all_text_is_used_where_it_fits_and_never_more_than_the_bound():
    assert list(training_texts(iter(PAIRS), TokenizerConfig(), 200_000)) == [text for _, text in PAIRS]
    tight = list(training_texts(iter(PAIRS), TokenizerConfig(train_bytes=1000), 1001))
    assert sum(map(len, tight)) <= 1000


def test_of_a_long_document_pieces_are_chosen():
    text = "".join(f"{n:07d} " for n in range(1 << 17))
    chosen = list(
        training_texts(iter([("one", text)]), TokenizerConfig(train_bytes=len(text) // 2), len(text))
    )
    assert 0 < len(chosen) < 16
    assert all(piece in text for piece in chosen)


@pytest.mark.filterwarnings("ignore::distllm.data.tokenizer.LossyTokenizer")
def test_a_text_of_its_own_is_opened_by_the_token_that_the_tokenizer_has_for_it(tmp_path):
    inner, settings, _ = bert()
    loaded = write(tmp_path, inner, settings | {"cls_token": {"content": "[CLS]"}})
    expected = [inner.token_to_id(name) for name in ("[CLS]", "the", "cat", "[SEP]")]
    assert loaded.enclosed(loaded.encode("the cat")).tolist() == expected
    (tmp_path / "again").mkdir()
    loaded.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert again.enclosed(again.encode("the cat")).tolist() == expected
    assert write(tmp_path, inner, settings).enclosed([5]).tolist() == [3, 5, 3]  # it names none


def test_a_saved_folder_encloses_texts_in_transformers_where_it_is_asked_to(tmp_path):
    from transformers import AutoTokenizer

    own = Tokenizer.train(TEXTS, TokenizerConfig(vocab_size=300))
    own.save(tmp_path, encloses=True)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    first, second = own.encode("the fox"), own.encode("a dog")
    assert theirs("the fox")["input_ids"] == own.enclosed(first).tolist()
    pair = [*own.enclosed(first), *second, own.eot_id]
    assert theirs("the fox", "a dog")["input_ids"] == pair
    padded = theirs(["the fox", "a"], padding=True)
    assert padded["input_ids"][1][-1] == own.eot_id
    assert sum(padded["attention_mask"][1]) == len(own.encode("a")) + 2


def test_a_process_says_once_that_a_tokenizer_loses_text(tmp_path, recwarn):
    inner, settings, _ = bert()
    write(tmp_path, inner, settings)
    warnings.simplefilter("default")
    Tokenizer.load(tmp_path)
    Tokenizer.load(tmp_path)
    assert [told.category for told in recwarn] == [LossyTokenizer]
