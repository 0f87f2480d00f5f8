"""The same model in Hugging Face's words: names of weights, and fields of its configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from distllm.config.shape import ModelShape


def llama_config(shape: ModelShape, eot_id: int) -> dict[str, Any]:
    """Return the content of ``config.json``."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_seq_len,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "tie_word_embeddings": shape.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": shape.init_std,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "torch_dtype": "float32",
    }


def generation_config(shape: ModelShape, eot_id: int, num_ids: int) -> dict[str, Any]:
    """Return the content of ``generation_config.json``; ids that pad the vocabulary are suppressed."""
    padding = list(range(num_ids, shape.vocab_size))
    suppress = {"suppress_tokens": padding} if padding else {}
    return {"bos_token_id": eot_id, "eos_token_id": eot_id, "pad_token_id": eot_id, **suppress}


def weight_sizes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Return name and size of each weight an export needs, a tied output projection left out."""
    width, middle = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    block = {
        "input_layernorm": (width,),
        "self_attn.qkv_proj": (queries + 2 * keys, width),
        "self_attn.o_proj": (width, queries),
        "post_attention_layernorm": (width,),
        "mlp.gate_up_proj": (2 * middle, width),
        "mlp.down_proj": (width, middle),
    }
    table = (shape.vocab_size, width)
    return {
        "embed_tokens.weight": table,
        **{
            f"decoder.layers.{i}.{part}.weight": size
            for i in range(shape.num_layers)
            for part, size in block.items()
        },
        "decoder.norm.weight": (width,),
        **({} if shape.tie_embeddings else {"lm_head.weight": table}),
    }


def llama_tensors(name: str, weight: Tensor, shape: ModelShape) -> Iterator[tuple[str, Tensor]]:
    """Yield the weight ``name`` under the names ``transformers`` gives it, joined projections split."""
    prefix = name if name.startswith("lm_head.") else f"model.{name.removeprefix('decoder.')}"
    if ".qkv_proj." in name:
        heads = [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads]
        parts = torch.split(weight, [n * shape.head_dim for n in heads])
        names = [prefix.replace("qkv_proj", f"{letter}_proj") for letter in "qkv"]
    elif ".gate_up_proj." in name:
        parts = weight.chunk(2)
        names = [prefix.replace("gate_up_proj", f"{half}_proj") for half in ("gate", "up")]
    else:
        parts, names = (weight,), [prefix]
    yield from zip(names, parts, strict=True)
