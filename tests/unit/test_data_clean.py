import pytest

from distllm.data.clean import RULES, clean, drop_short
from distllm.data.records import Document


@pytest.mark.parametrize(
    ("text", "cleaned", "changed"),
    [
        ("as it is\n\n    indented\tcode", "as it is\n\n    indented\tcode", []),
        ("a\r\nb\rc\fd\u2028e\x85f", "a\nb\nc\nd\ne\nf", ["line_breaks"]),
        ("\ufeffa\0b\x1b[0m\x9f\ud800c", "ab[0mc", ["control_characters"]),
        ("cafe\u0301", "café", ["nfc"]),
        ("\n\n a  \n\t\n\n\u00a0\nb \n", " a\n\nb", ["whitespace"]),
        ("\r\n\0", "", ["line_breaks", "control_characters", "whitespace"]),
    ],
)
def test_each_rule_edits_and_is_named(text, cleaned, changed):
    assert clean(text) == (cleaned, changed)
    assert set(changed) <= RULES.keys()


def test_short_documents_are_dropped():
    assert drop_short(Document.of_text("d", "ä" * 10), 10) is None
    dropped = drop_short(Document.of_text("d", "ä" * 9), 10)
    assert (dropped.id, dropped.rule) == ("d", "too_short")
    assert "9 characters" in dropped.reason
    assert drop_short(Document.of_text("d", ""), 0).rule == "too_short"
