"""Llama and its descendants: fields of their ``config.json``, both ways."""

from __future__ import annotations

from typing import Any

from distllm.config.huggingface_fields import (
    Json,
    read_activation,
    read_biases,
    read_sizes,
    read_window_pattern,
    refuse,
    write_activation,
    write_biases,
    write_layer_types,
    write_sizes,
)
from distllm.config.huggingface_rope import read_rope, write_rope
from distllm.config.shape import ModelShape


def read_llama(content: Json) -> dict[str, Any]:
    """Return what all descendants of Llama share."""
    heads = content["num_attention_heads"]
    return {
        **read_sizes(content),
        **read_biases(content),
        **read_rope(content),
        "num_kv_heads": content.get("num_key_value_heads") or heads,
        "head_dim": content.get("head_dim") or content["hidden_size"] // heads,
        "activation": read_activation(content.get("hidden_act", "silu")),
        "norm_eps": content["rms_norm_eps"],
        "tie_embeddings": content.get("tie_word_embeddings", False),
    }


def write_llama(shape: ModelShape) -> dict[str, Any]:
    """Return what all descendants of Llama share."""
    return {
        **write_sizes(shape),
        **write_biases(shape),
        **write_rope(shape),
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": write_activation(shape.activation),
        "rms_norm_eps": shape.norm_eps,
    }


def read_mistral(content: Json) -> dict[str, Any]:
    """Mistral is a Llama with a window."""
    return {**read_llama(content), "sliding_window": content["sliding_window"]}


def write_mistral(shape: ModelShape) -> dict[str, Any]:
    """Mistral's windows are alike in all layers, or in none."""
    return {**write_llama(shape), "sliding_window": max(shape.windows) or None}


def read_mixtral(content: Json) -> dict[str, Any]:
    """Mixtral is a Mistral with experts; what its router adds as noise in training is refused."""
    refuse(content, {"router_jitter_noise": 0.0})
    return {
        **read_mistral(content),
        "num_experts": content["num_local_experts"],
        "experts_per_token": content["num_experts_per_tok"],
        "balance_loss": content["router_aux_loss_coef"],
    }


def write_mixtral(shape: ModelShape) -> dict[str, Any]:
    """Say what `read_mixtral` reads."""
    return {
        **write_mistral(shape),
        "num_local_experts": shape.num_experts,
        "num_experts_per_tok": shape.experts_per_token,
        "router_aux_loss_coef": shape.balance_loss,
    }


def read_qwen(content: Json) -> dict[str, Any]:
    """Qwen2 has biases of queries, keys and values only; windows from ``max_window_layers`` on."""
    keys = read_llama(content)
    if content["model_type"] == "qwen2":
        keys |= {"attention_bias": True, "attention_out_bias": False}
    else:
        keys["qk_norm"] = "head"
    if not content.get("use_sliding_window"):
        return keys
    layers, first = content["num_hidden_layers"], content["max_window_layers"]
    sliding = [layer >= first for layer in range(layers)]
    return {
        **keys,
        "sliding_window": content["sliding_window"],
        "window_pattern": read_window_pattern(content, sliding),
    }


def write_qwen(shape: ModelShape) -> dict[str, Any]:
    """Say what `read_qwen` reads."""
    return {
        **write_llama(shape),
        "use_sliding_window": any(shape.windows),
        "sliding_window": max(shape.windows) or None,
        "layer_types": write_layer_types(shape),
    }


def read_olmo2(content: Json) -> dict[str, Any]:
    """OLMo 2 has norms of queries and keys, and norms on what sublayers give."""
    return {**read_llama(content), "qk_norm": "all", "norm_place": "output"}
