"""Whether the ids of a dataset are the same tokens for a model as in its training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distllm.config.peft import with_file
from distllm.data.tokenizer.folder import TOKENIZER_FILE, end_token, read_description, read_settings
from distllm.errors import TokenizerError

_NAMED = 3


@dataclass(frozen=True, slots=True)
class _Ids:
    """The ids of a tokenizer: of each token, and the token of each; ``special`` tokens by name."""

    of_token: dict[str, int]
    of_id: dict[int, str]
    special: frozenset[str]


def misfit(dataset: Path, model: Path) -> str | None:
    """Name some ids that are one token in a dataset and another in a model's folder; None if none are.

    Tokens that only one of them has are accepted: a tokenizer may have been extended or shortened. Without
    a tokenizer.json in the folder nothing is known, and None is returned.

    Raises:
        ConfigError: the model's folder is that of an adapter, and the model below it is gone.
        TokenizerError: a tokenizer.json cannot be read.
    """
    model = with_file(model, TOKENIZER_FILE)
    if not (dataset / TOKENIZER_FILE).is_file() or not (model / TOKENIZER_FILE).is_file():
        return None
    ours, theirs = _ids(dataset), _ids(model)
    differing = [
        (token, id_)
        for token, id_ in ours.of_token.items()
        if theirs.of_token.get(token, id_) != id_ or theirs.of_id.get(id_, token) != token
    ]
    if not differing:
        return None
    differing.sort(key=lambda pair: (pair[0] not in ours.special, pair[1]))
    named = [_difference(token, id_, theirs) for token, id_ in differing[:_NAMED]]
    if more := len(differing) - len(named):
        named.append(f"and so on for {more} more of {len(ours.of_token)}")
    return "; ".join(named)


def notes_on_fit(dataset: Path, model: Path) -> list[str]:
    """Return notes about two tokenizers that differ without being wrong.

    Raises:
        ConfigError: the model's folder is that of an adapter, and the model below it is gone.
        TokenizerError: a tokenizer.json, or what lies beside it, cannot be read.
    """
    model = with_file(model, TOKENIZER_FILE)
    if not (model / TOKENIZER_FILE).is_file():
        return [f"{model} holds no {TOKENIZER_FILE}: whether the dataset's ids are its own is not known"]
    ours, theirs = end_token(read_settings(dataset)), end_token(read_settings(model))
    if None in (ours, theirs) or ours == theirs:
        return []
    return [f"texts of the dataset end with {ours}, those of {model} with {theirs}"]


def _difference(token: str, id_: int, theirs: _Ids) -> str:
    there = theirs.of_id.get(id_)
    if there is None:
        return f"{token!r} is {id_} in the dataset and {theirs.of_token[token]} in the model"
    return f"id {id_} is {token!r} in the dataset and {there!r} in the model"


def _ids(folder: Path) -> _Ids:
    """Read what a tokenizer.json says, without building the tokenizer: vocabularies are large."""
    file = folder / TOKENIZER_FILE
    try:
        description: dict[str, Any] = json.loads(read_description(folder))
        vocab = description["model"]["vocab"]
        of_token: dict[str, int] = (
            dict(vocab)
            if isinstance(vocab, dict)
            else {token: number for number, (token, _) in enumerate(vocab)}
        )
        added = list(description.get("added_tokens") or [])
        of_token |= {token["content"]: token["id"] for token in added}
        special = frozenset(token["content"] for token in added if token["special"])
        of_id = {id_: token for token, id_ in of_token.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise TokenizerError(
            f"{file} is not a tokenizer.json: {type(error).__name__}: {error}",
            where=str(file),
            remedy="get the folder again, with the tokenizer.json that `tokenizers` or `transformers` saved",
        ) from error
    return _Ids(of_token, of_id, special)
