import pytest

from distllm.redact import REDACTED, redact_text, redacted


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("s3://key:secret@bucket/data", f"s3://{REDACTED}@bucket/data"),
        ("https://user@host/x", f"https://{REDACTED}@host/x"),
        ("https://h/x?X-Amz-Signature=abc&v=1", f"https://h/x?X-Amz-Signature={REDACTED}&v=1"),
        ("https://h/x?v=1&access_token=abc", f"https://h/x?v=1&access_token={REDACTED}"),
        ("hf_" + "a" * 30, REDACTED),
        ("prefix ghp_" + "b" * 36, f"prefix {REDACTED}"),
        ("sk-" + "c" * 40, REDACTED),
        ("AKIA" + "A" * 16, REDACTED),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0x.sig", REDACTED),
    ],
)
def test_secrets_are_replaced(text, left):
    assert redact_text(text) == left


@pytest.mark.parametrize(
    "text",
    ["data/demo", "s3://bucket/key", "train.tokens_per_step", "someone@example.org", "a?b=c", "sk-short", ""],
)
def test_other_texts_stay(text):
    assert redact_text(text) == text


def test_every_place_of_a_nested_value_is_reached_and_nothing_else_changes():
    value = {"a": ["x", {"b": ("s3://k:s@b",)}], "n": 3, "none": None, "flag": True}
    assert redacted(value) == {"a": ["x", {"b": [f"s3://{REDACTED}@b"]}], "n": 3, "none": None, "flag": True}
    assert value["a"][1]["b"] == ("s3://k:s@b",)
