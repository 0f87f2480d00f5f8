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


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("password=hunter2hunter2", f"password={REDACTED}"),
        ("db.access_key: abcdef123", f"db.access_key: {REDACTED}"),
        ("HF_TOKEN=abcdefg rest", f"HF_TOKEN={REDACTED} rest"),
    ],
)
def test_what_is_assigned_to_the_name_of_a_secret_is_replaced(text, left):
    assert redact_text(text) == left


def test_a_value_below_the_name_of_a_secret_is_replaced_however_it_looks():
    value = {"env": {"WANDB_API_KEY": "plain", "password": "x", "NCCL_DEBUG": "INFO"}}
    assert redacted(value) == {"env": {"WANDB_API_KEY": REDACTED, "password": REDACTED, "NCCL_DEBUG": "INFO"}}


def test_a_name_that_may_be_harmless_hides_only_what_looks_random():
    assert redacted({"hub.token": "a1b2c3d4e5f6a7b8"}) == {"hub.token": REDACTED}
    harmless = {
        "pad_token": "<pad>",
        "key": "text",
        "train.tokens_per_step": "4096",
        "token": "",
        "auth": None,
    }
    assert redacted(harmless) == harmless


def test_what_the_environment_calls_a_secret_is_found_anywhere(monkeypatch):
    monkeypatch.setenv("SERVICE_PASSWORD", "c4n4ry-9f8e7d6c")
    monkeypatch.setenv("SHORT_SECRET", "abc")
    monkeypatch.setenv("SORT_KEY", "alphabetical")
    text = "cannot read s3://b/c4n4ry-9f8e7d6c/x, abc, alphabetical"
    assert redact_text(text) == f"cannot read s3://b/{REDACTED}/x, abc, alphabetical"
