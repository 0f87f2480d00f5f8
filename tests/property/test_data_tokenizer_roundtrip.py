from functools import cache

from hypothesis import example, given, settings
from hypothesis import strategies as st

from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.tokenizer import EOT, Tokenizer

any_text = st.text(st.characters(exclude_categories=("Cs",)), max_size=200)


@cache
def trained():
    return Tokenizer.train(
        ["the cat sat on the mat, the dog sat on the log. " * 20, "naïve café 漢字 " * 20],
        TokenizerConfig(vocab_size=320),
    )


@given(any_text)
@example(f"a{EOT}b")
@example("".join(map(chr, range(0x100))))
@example("e\u0301 \r\n\0 \U0001f600\ufeff漢")
@settings(max_examples=200)
def test_decode_inverts_encode(value):
    tokenizer = trained()
    ids = tokenizer.encode(value)
    assert tokenizer.decode(ids) == value
    assert tokenizer.eot_id not in ids


@given(any_text)
def test_byte_lengths_add_up_to_the_text(value):
    tokenizer = trained()
    assert tokenizer.token_byte_lengths()[tokenizer.encode(value)].sum() == len(value.encode())


@given(st.lists(any_text, max_size=5))
def test_a_batch_encodes_as_its_texts(values):
    assert trained().encode_batch(values) == [trained().encode(value) for value in values]
