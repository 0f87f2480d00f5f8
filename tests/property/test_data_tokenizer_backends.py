"""gigatoken, `tokenizers` and both kinds of model, on any text."""

from functools import cache

from hypothesis import example, given, settings
from hypothesis import strategies as st

from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.tokenizer import EOT, Tokenizer, encoder

any_character = st.characters(exclude_categories=("Cs",))
awkward = st.sampled_from(" \n\t\r\u00a0\u2028\u3000'sTtrevmld19²ab.,<|>\u0301漢ß🙂\u200d\0\u088f\U00033000")
any_text = st.lists(st.one_of(any_character, awkward), max_size=120).map("".join)


@cache
def tokenizers_of():
    texts = ["the cat's mat, the dog sat on the log. we'll see 1234 !!! " * 20, "naïve café 漢字\n\n" * 20]
    slow = Tokenizer.train(texts, TokenizerConfig(vocab_size=330))
    unigram = Tokenizer.train(texts, TokenizerConfig(kind="unigram", vocab_size=330))
    return slow, Tokenizer(slow._serialized, "fast", backend="gigatoken"), unigram


@given(st.lists(any_text, max_size=8))
@example([f"a{EOT}b", "", "\u088f's"])
@settings(max_examples=300, deadline=None)
def test_backends_give_equal_ids(texts):
    slow, fast, _ = tokenizers_of()
    ours, theirs = fast.encode_packed(texts), slow.encode_packed(texts)
    assert ours.ids_M.tolist() == theirs.ids_M.tolist()
    assert ours.ends_D.tolist() == theirs.ends_D.tolist()
    assert fast.backend == "gigatoken"


@given(any_text)
@example(f"a{EOT}b")
@settings(max_examples=150, deadline=None)
def test_unigram_loses_nothing_and_forges_nothing(text):
    *_, unigram = tokenizers_of()
    ids = unigram.encode(text)
    assert unigram.decode(ids) == text
    assert unigram.eot_id not in ids
    assert unigram.token_byte_lengths()[ids].sum() == len(text.encode())


@given(any_text.map(lambda text: text * 3), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_cuts_change_no_id(text, size):
    slow, *_ = tokenizers_of()
    whole = slow.encode(text)
    before, encoder._PIECE_CHARS = encoder._PIECE_CHARS, size
    try:
        assert slow.encode(text) == whole
    finally:
        encoder._PIECE_CHARS = before
