import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distllm.config.schema_clean import C4Config, CleanConfig
from distllm.data.clean import Cleaner
from distllm.data.clean.edits import remove_controls, unify_line_breaks
from distllm.data.records import Document, Dropped

any_text = st.text(
    st.characters(codec=None) | st.sampled_from(" \t\n\r\v\f\x85\u2028\0\x7f\ufeff\ud800é\u0301e")
)
mojibake = st.text(st.sampled_from("éüß你 “x\n"), max_size=8).map(
    lambda text: text.encode().decode("latin-1").encode().decode("latin-1")
)
lines = st.lists(
    st.sampled_from(
        ["a b", "the c", "[1]", "[[2]]", "[edit].", "javascript", "java[]script", "é.", "...", "\n"]
    )
    | st.sampled_from(" \n"),
    max_size=20,
).map("".join)
CONFIGS = {
    "basic": CleanConfig(min_chars=0),
    "all edits": CleanConfig(min_chars=0, repair=True, normal_form="nfkc", repeated_lines=True),
    "baseline": CleanConfig(min_chars=0, lower_case=True, stop_words="remove"),
}
C4_LINES = C4Config(min_line_words=3, max_word_length=20, terminal_punctuation=True, boilerplate=True)
CONFIGS["lines"] = CleanConfig(min_chars=0, c4=C4_LINES)
CONFIGS["lines, lower case"] = CleanConfig(
    min_chars=0, c4=C4Config(min_line_words=3, boilerplate=True), lower_case=True
)
CLEANERS = {name: Cleaner(config) for name, config in CONFIGS.items()}


def clean(text, name="basic"):
    item, edited = CLEANERS[name](Document.from_text("d", text, "en"))
    return ("" if isinstance(item, Dropped) else item.text), edited


@pytest.mark.parametrize("name", CLEANERS)
@given(text=any_text | mojibake | lines)
@example("e\0\u0301 \r\n \n \n\n \ud800x\u2029")
@example("0 0\r0 0 ")
@example("\u00b8\u00c2\u00a1")
@example("the a\n\nthe\n\n\nb")
def test_cleaning_is_idempotent(name, text):
    once, _ = clean(text, name)
    assert clean(once, name) == (once, [])


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
        return [c for c in unicodedata.normalize("NFC", remove_controls(value)) if not c.isspace()]

    assert visible(clean(text)[0]) == visible(unify_line_breaks(text))
