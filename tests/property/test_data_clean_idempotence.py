import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st

from distllm.data.clean import RULES, clean

any_text = st.text(
    st.characters(codec=None) | st.sampled_from(" \t\n\r\v\f\x85\u2028\0\x7f\ufeff\ud800é\u0301e")
)


@given(any_text)
@example("e\0\u0301 \r\n \n \n\n \ud800x\u2029")
def test_cleaning_is_idempotent(text):
    once, _ = clean(text)
    assert clean(once) == (once, [])


@given(any_text)
def test_cleaned_text_is_plain(text):
    cleaned, _ = clean(text)
    assert cleaned.encode().decode() == cleaned
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in cleaned)
    assert "\n\n\n" not in cleaned
    assert all(line == line.rstrip() for line in cleaned.split("\n"))


@given(any_text)
def test_visible_characters_stay(text):
    def visible(value):
        return [
            c for c in unicodedata.normalize("NFC", RULES["control_characters"](value)) if not c.isspace()
        ]

    assert visible(clean(text)[0]) == visible(RULES["line_breaks"](text))
