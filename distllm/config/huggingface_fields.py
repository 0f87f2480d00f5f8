"""What fields of a ``config.json`` mean, whatever the architecture; what cannot be read is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distllm.errors import ConfigError

Json = Mapping[str, Any]
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}
_THEIR_ACTIVATIONS = {"gelu_tanh": "gelu_new"}


def our_activation(name: str) -> str:
    """Return the value of ``model.activation`` for theirs."""
    ours = _ACTIVATIONS.get(name, name)
    if ours not in ("silu", "gelu", "gelu_tanh", "relu"):
        raise ConfigError(
            f"the activation {name!r} is not known",
            where="hidden_act",
            remedy="use a model with silu, gelu, gelu_new or relu",
        )
    return ours


def refuse(content: Json, wanted: Mapping[str, Any]) -> None:
    """Refuse options that change what a model computes and that the block does not have."""
    for key, value in wanted.items():
        if content.get(key, value) != value:
            raise ConfigError(
                f"{key}={content[key]!r} cannot be read, only {value!r}",
                where=key,
                remedy="use a model without this option",
            )


def window_pattern(content: Json, sliding: list[bool]) -> str:
    """Return which layers slide: as ``layer_types`` says or, without it, as ``sliding``."""
    kinds = content.get("layer_types")
    if kinds is None:
        return "".join("GL"[slides] for slides in sliding)
    letters = {"sliding_attention": "L", "full_attention": "G"}
    if len(kinds) != len(sliding) or not letters.keys() >= set(kinds):
        raise ConfigError(
            f"layer_types={kinds!r} cannot be read: not {len(sliding)} of {', '.join(letters)}",
            where="layer_types",
            remedy="use a model with these kinds of layers",
        )
    return "".join(letters[kind] for kind in kinds)


def their_activation(name: str) -> str:
    """Return transformers' name of a value of ``model.activation``."""
    return _THEIR_ACTIVATIONS.get(name, name)
