"""Whether the ids of a dataset mean to a model what they meant where it was trained."""

from __future__ import annotations

from pathlib import Path

import tokenizers

from distllm.data.tokenizer.folder import TOKENIZER_FILE


def misfit(dataset: Path, model: Path) -> str | None:
    """Say which token of a dataset's tokenizer has another id in that of a model's folder, or None.

    What a folder without a tokenizer.json meant by its ids is not known: None.
    """
    ours, theirs = _vocabulary(dataset / TOKENIZER_FILE), _vocabulary(model / TOKENIZER_FILE)
    if ours is None or theirs is None:
        return None
    for token, number in sorted(ours.items(), key=lambda item: item[1]):
        if (other := theirs.get(token)) != number:
            known = "no id" if other is None else f"the id {other}"
            return f"{token!r} has the id {number} in the dataset, and {known} in the model's tokenizer"
    return None


def _vocabulary(file: Path) -> dict[str, int] | None:
    if not file.is_file():
        return None
    try:
        found: dict[str, int] = tokenizers.Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
    except Exception:  # the tokenizers library raises bare Exception; whoever loads the file tells of it
        return None
    return found
