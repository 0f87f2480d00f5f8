"""The folder of a tokenizer as Hugging Face lays it out: tokenizer.json and its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distllm.errors import ConfigError, TokenizerError
from distllm.fsio import atomic_write_json, atomic_write_text

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_FILES = (TOKENIZER_FILE, CONFIG_FILE)
_SPECIAL_FILE = "special_tokens_map.json"
_TEMPLATE_FILE = "chat_template.jinja"
_END_ROLES = ("eos_token", "sep_token")


def read_description(path: Path) -> str:
    """Return the text of the tokenizer.json at ``path``, or of the one in that folder.

    Raises:
        TokenizerError: it is missing or unreadable.
    """
    file = path / TOKENIZER_FILE if path.is_dir() else path
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(
            f"cannot read the tokenizer {file}: {error}",
            where=str(file),
            remedy="set tokenizer.path to a tokenizer.json or its folder, or to null to train one",
        ) from error


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of a tokenizer.json: special tokens and the chat template.

    The keys are those of tokenizer_config.json; special_tokens_map.json gives way to it.

    Raises:
        TokenizerError: one of the files is no JSON object.
    """
    folder = path if path.is_dir() else path.parent
    settings: dict[str, Any] = {}
    for name in (_SPECIAL_FILE, CONFIG_FILE):
        settings |= _read_object(folder / name)
    template = folder / _TEMPLATE_FILE
    if template.is_file():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    return settings


def _read_object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(
            f"{file.name} is not valid JSON: {error}", where=str(file), remedy="get the folder again"
        ) from error
    if not isinstance(content, dict):
        raise TokenizerError(
            f"{file.name} holds no JSON object", where=str(file), remedy="get the folder again"
        )
    return content


def end_token(settings: Mapping[str, Any]) -> str | None:
    """Return the token that ends a text: eos, else sep, else None."""
    for role in _END_ROLES:
        token = named_token(settings, role)
        if token is not None:
            return token
    return None


def begin_token(settings: Mapping[str, Any]) -> str | None:
    """Return the token that opens a text an encoder reads as a whole (BERT's ``[CLS]``), else None."""
    return named_token(settings, "cls_token")


def named_token(settings: Mapping[str, Any], role: str) -> str | None:
    """Return the token of a role, such as ``bos_token``; None if it is not set."""
    token = settings.get(role)
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def chat_template(settings: Mapping[str, Any]) -> str | None:
    """Return the chat template; if there are several, the one named default."""
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def read_template(value: str | None) -> str | None:
    """Return the template that ``tokenizer.chat_template`` gives as text or names as a file.

    Raises:
        ConfigError: it is neither.
    """
    if value is None or "{" in value:
        return value
    try:
        return Path(value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the chat template {value!r} is neither Jinja text nor a readable file: {error}",
            where="tokenizer.chat_template",
            remedy="give a file, or a template with at least one {{ }} or {% %}",
        ) from error


def write_folder(
    directory: Path,
    serialized: str,
    bot: str,
    bos: str,
    eot: str,
    template: str | None,
    max_length: int | None,
    *,
    pads: bool = False,
) -> None:
    """Write a folder that ``transformers.AutoTokenizer`` loads, each file whole or not at all."""
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": bos,
        "eos_token": eot,
        "unk_token": None,
    }
    if bot != eot:
        settings["cls_token"] = bot
    if pads:
        settings["pad_token"] = eot
    if max_length is not None:
        settings["model_max_length"] = max_length
    if template is not None:
        settings["chat_template"] = template
    atomic_write_text(directory / TOKENIZER_FILE, serialized)
    atomic_write_json(directory / CONFIG_FILE, settings)
