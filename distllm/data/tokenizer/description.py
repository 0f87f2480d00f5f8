"""Facts from a tokenizer.json: its fingerprint, whether it keeps every byte, where text may be cut."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import pre_tokenizers

from distllm.fsio import digest_bytes

Description = Mapping[str, Any]
ALPHABET = frozenset(pre_tokenizers.ByteLevel.alphabet())
_PRIVATE = " {} "


def fingerprint(description: Description, eot: str | None) -> str:
    """Return the xxh3-128 digest of what determines ids, whatever the layout of the file.

    Truncation and padding are not used, and merges may be pairs or strings. ``eot`` is given only
    where the description alone would give another.
    """
    canonical = dict(description)
    for ignored in ("truncation", "padding"):
        if ignored in canonical:
            canonical[ignored] = None
    model = dict(canonical.get("model") or {})
    if "merges" in model:
        model["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    canonical["model"] = model
    content: Any = canonical if eot is None else [canonical, eot]
    return digest_bytes(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def enclosing(bot: str, eot: str, ids: Mapping[str, int]) -> dict[str, Any]:
    """Return the post-processor that puts a text between two tokens, and ``eot`` after a second text."""

    def mark(name: str, text: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": text}}

    def sequence(name: str, text: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": text}}

    single = [mark(bot, 0), sequence("A", 0), mark(eot, 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, sequence("B", 0), mark(eot, 0)],
        "special_tokens": {name: {"id": name, "ids": [id_], "tokens": [name]} for name, id_ in ids.items()},
    }


def parts(description: Description, step: str, inner: str) -> Iterator[Mapping[str, Any]]:
    """Yield the elements of one step (``decoder``, ...), those of a sequence one by one."""
    part = description.get(step)
    if not part:
        return
    if part.get("type") == "Sequence":
        yield from part[inner]
    else:
        yield part


def why_not_byte_level(description: Description, vocab: Mapping[str, int]) -> str | None:
    """Return None if a token's name has one character for every byte it stands for, else the reason."""
    if all(part.get("type") != "ByteLevel" for part in parts(description, "decoder", "decoders")):
        return "it is not byte-level"
    if missing := ALPHABET - vocab.keys():
        return f"it lacks {len(missing)} of the 256 bytes"
    return None


def why_lossy(description: Description, vocab: Mapping[str, int]) -> str | None:
    """Return None if decoding gives back every text exactly, else the reason."""
    if reason := why_not_byte_level(description, vocab):
        return reason
    if kinds := [part["type"] for part in parts(description, "normalizer", "normalizers")]:
        return f"it changes text before encoding ({', '.join(kinds)})"
    splitters = list(parts(description, "pre_tokenizer", "pretokenizers"))
    if any(part.get("add_prefix_space") for part in splitters):
        return "it puts a space before the text"
    if any(part.get("behavior") == "Removed" for part in splitters) or any(
        part["type"] in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit")
        for part in splitters
    ):
        return "it drops what separates words"
    if any(token.get("lstrip") or token.get("rstrip") for token in added_plain(description)):
        return "an added token swallows the spaces beside it"
    return None


def added_plain(description: Description) -> Iterator[Mapping[str, Any]]:
    """Yield the added tokens that are recognised in text."""
    return (token for token in description.get("added_tokens", []) if not token["special"])


def cuts_at_spaces(description: Description) -> bool:
    """Return whether text may be cut before a space or newline that follows a character.

    True only for GPT-2's rule, which every tokenizer trained here has: whitespace never belongs
    to the text before it, and the rule has no look-behind.
    """
    splitters = list(parts(description, "pre_tokenizer", "pretokenizers"))
    return (
        len(splitters) == 1
        and splitters[0]["type"] == "ByteLevel"
        and splitters[0].get("use_regex", True)
        and not splitters[0].get("add_prefix_space", True)
        and not description.get("normalizer")
        and not any(added_plain(description))
    )


def unspellable(description: Description) -> dict[str, Any]:
    """Return a description that encodes in the same way, but never makes special tokens from text.

    The library leaves special tokens alone on request, but a unigram or word model still holds
    their names as pieces. Here they get names with a space inside, which no piece of text has.
    The token for unknown text keeps its name.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(description))
    changed["post_processor"] = None
    model = changed["model"]
    if model.get("type") == "BPE":
        return changed
    special = {token["content"] for token in changed["added_tokens"] if token["special"]}
    special.discard(model.get("unk_token"))
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {_renamed(name, special): id_ for name, id_ in vocab.items()}
    else:
        if model.get("unk_id") is not None:
            special.discard(vocab[model["unk_id"]][0])
        model["vocab"] = [[_renamed(name, special), score] for name, score in vocab]
    for token in changed["added_tokens"]:
        token["content"] = _renamed(token["content"], special)
    return changed


def _renamed(name: str, special: set[str]) -> str:
    return _PRIVATE.format(name) if name in special else name
