"""Fields of a ``config.json`` that several architectures share; what cannot be read is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distllm.config.shape import ModelShape
from distllm.errors import ConfigError

Json = Mapping[str, Any]
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}
_THEIR_ACTIVATIONS = {"gelu_tanh": "gelu_new"}


def read_sizes(content: Json) -> dict[str, Any]:
    """Return the keys of ``model`` that Llama's descendants and BERT's call by the same names."""
    return {
        "hidden_size": content["hidden_size"],
        "num_layers": content["num_hidden_layers"],
        "num_heads": content["num_attention_heads"],
        "intermediate_size": content["intermediate_size"],
        "max_positions": content["max_position_embeddings"],
    }


def write_sizes(shape: ModelShape) -> dict[str, Any]:
    """Return the fields that `read_sizes` reads."""
    return {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_seq_len,
    }


def read_biases(content: Json) -> dict[str, Any]:
    """Return which projections have biases: one field stands for all four of an attention."""
    return {
        "attention_bias": content.get("attention_bias", False),
        "attention_out_bias": content.get("attention_bias", False),
        "mlp_bias": content.get("mlp_bias", False),
    }


def write_biases(shape: ModelShape) -> dict[str, Any]:
    """Return the fields that `read_biases` reads."""
    return {"attention_bias": shape.attention_bias, "mlp_bias": shape.mlp_bias}


def read_activation(name: str) -> str:
    """Return the value of ``model.activation`` for transformers' name."""
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


def read_window_pattern(content: Json, sliding: list[bool]) -> str:
    """Return which layers have a window: by ``layer_types`` or, without it, by ``sliding``."""
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


def write_layer_types(shape: ModelShape) -> list[str]:
    """Return the ``layer_types`` that `read_window_pattern` reads."""
    return ["sliding_attention" if window else "full_attention" for window in shape.windows]


def write_activation(name: str) -> str:
    """Return transformers' name for a value of ``model.activation``."""
    return _THEIR_ACTIVATIONS.get(name, name)
