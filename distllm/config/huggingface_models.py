"""How each architecture of transformers says what a model is: fields of ``config.json``, both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distllm.config.schema_model import RopeConfig
from distllm.config.shape import ModelShape
from distllm.errors import ConfigError

Json = Mapping[str, Any]
Read = Callable[[Json], dict[str, Any]]
Write = Callable[[ModelShape], dict[str, Any]]
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}
_THEIR_ACTIVATIONS = {"gelu_tanh": "gelu_new"}
_BIASED = {
    "norm": "layer",
    "norm_bias": True,
    "positions": "learned",
    "gated": False,
    "attention_bias": True,
    "attention_out_bias": True,
    "mlp_bias": True,
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """One ``model_type`` of transformers.

    Attributes:
        classes: the model class for each head, ``lm`` being that of a language model.
        read: the keys of ``model`` that its config.json sets.
        write: the fields of a config.json that says what a shape says.
    """

    classes: Mapping[str, str]
    read: Read
    write: Write


def _activation(name: str) -> str:
    ours = _ACTIVATIONS.get(name, name)
    if ours not in ("silu", "gelu", "gelu_tanh", "relu"):
        raise ConfigError(
            f"the activation {name!r} is not known",
            where="hidden_act",
            remedy="use a model with silu, gelu, gelu_new or relu",
        )
    return ours


def _refuse(content: Json, wanted: Mapping[str, Any]) -> None:
    """Refuse options that change what a model computes and that the block does not have."""
    for key, value in wanted.items():
        if content.get(key, value) != value:
            raise ConfigError(
                f"{key}={content[key]!r} cannot be read, only {value!r}",
                where=key,
                remedy="use a model without this option",
            )


def _read_rope(content: Json) -> dict[str, Any]:
    """Return the keys of rotary positions, from the old fields of transformers or the new ones."""
    given = {**(content.get("rope_scaling") or {}), **(content.get("rope_parameters") or {})}
    theta = float(given.get("rope_theta") or content.get("rope_theta") or 10000.0)
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return {"rope_theta": theta}
    if kind not in ("linear", "llama3", "yarn"):
        raise ConfigError(
            f"rotary positions of type {kind!r} cannot be read",
            where="rope_parameters",
            remedy="use a model with default, linear, llama3 or yarn positions",
        )
    renamed = {"original_len": "original_max_position_embeddings"}
    fields = {field.name: renamed.get(field.name, field.name) for field in dataclasses.fields(RopeConfig)}
    values = {ours: given[theirs] for ours, theirs in fields.items() if given.get(theirs) is not None}
    if kind != "linear":
        values.setdefault("original_len", content["max_position_embeddings"])
    return {"rope_theta": theta, "rope": RopeConfig(scaling=kind, **values)}


def _write_rope(shape: ModelShape) -> dict[str, Any]:
    rope = shape.rope
    said: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    if rope.scaling != "none":
        said |= {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling in ("llama3", "yarn"):
        said["original_max_position_embeddings"] = rope.original_len
    if rope.scaling == "llama3":
        said |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.scaling == "yarn":
        said |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        said |= {"attention_factor": rope.attention_factor} if rope.attention_factor else {}
    return {"rope_theta": shape.rope_theta, "rope_parameters": said}


def _read_llama(content: Json) -> dict[str, Any]:
    """Return what all descendants of Llama share."""
    heads = content["num_attention_heads"]
    return {
        "hidden_size": content["hidden_size"],
        "num_layers": content["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": content.get("num_key_value_heads") or heads,
        "head_dim": content.get("head_dim") or content["hidden_size"] // heads,
        "intermediate_size": content["intermediate_size"],
        "activation": _activation(content.get("hidden_act", "silu")),
        "norm_eps": content.get("rms_norm_eps", 1e-6),
        "max_positions": content["max_position_embeddings"],
        "tie_embeddings": content.get("tie_word_embeddings", False),
        "attention_bias": content.get("attention_bias", False),
        "attention_out_bias": content.get("attention_bias", False),
        "mlp_bias": content.get("mlp_bias", False),
        **_read_rope(content),
    }


def _write_llama(shape: ModelShape) -> dict[str, Any]:
    return {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate_size,
        "hidden_act": _THEIR_ACTIVATIONS.get(shape.activation, shape.activation),
        "rms_norm_eps": shape.norm_eps,
        "max_position_embeddings": shape.max_seq_len,
        "attention_bias": shape.attention_bias,
        "mlp_bias": shape.mlp_bias,
        **_write_rope(shape),
    }


def _read_mistral(content: Json) -> dict[str, Any]:
    return {**_read_llama(content), "sliding_window": content.get("sliding_window")}


def _write_mistral(shape: ModelShape) -> dict[str, Any]:
    return {**_write_llama(shape), "sliding_window": max(shape.windows) or None}


def _read_mixtral(content: Json) -> dict[str, Any]:
    _refuse(content, {"router_jitter_noise": 0.0})
    return {
        **_read_mistral(content),
        "num_experts": content["num_local_experts"],
        "experts_per_token": content["num_experts_per_tok"],
        "balance_loss": content.get("router_aux_loss_coef", 0.001),
    }


def _write_mixtral(shape: ModelShape) -> dict[str, Any]:
    return {
        **_write_mistral(shape),
        "num_local_experts": shape.num_experts,
        "num_experts_per_tok": shape.experts_per_token,
        "router_aux_loss_coef": shape.balance_loss,
    }


def _read_qwen(content: Json) -> dict[str, Any]:
    """Qwen2 has biases of queries, keys and values only; windows from ``max_window_layers`` on."""
    keys = _read_llama(content)
    if content["model_type"] == "qwen2":
        keys |= {"attention_bias": True, "attention_out_bias": False}
    else:
        keys["qk_norm"] = "head"
    if not content.get("use_sliding_window"):
        return keys
    layers = content["num_hidden_layers"]
    first = content.get("max_window_layers", layers)
    kinds = content.get("layer_types") or [
        "sliding_attention" if layer >= first else "full_attention" for layer in range(layers)
    ]
    pattern = "".join("L" if kind == "sliding_attention" else "G" for kind in kinds)
    return {**keys, "sliding_window": content.get("sliding_window"), "window_pattern": pattern}


def _write_qwen(shape: ModelShape) -> dict[str, Any]:
    kinds = ["sliding_attention" if window else "full_attention" for window in shape.windows]
    return {
        **_write_llama(shape),
        "use_sliding_window": any(shape.windows),
        "sliding_window": max(shape.windows) or None,
        "layer_types": kinds,
    }


def _read_olmo2(content: Json) -> dict[str, Any]:
    return {**_read_llama(content), "qk_norm": "all", "norm_place": "output"}


def _read_gpt2(content: Json) -> dict[str, Any]:
    _refuse(
        content,
        {
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
    )
    return {
        **_BIASED,
        "hidden_size": content["n_embd"],
        "num_layers": content["n_layer"],
        "num_heads": content["n_head"],
        "intermediate_size": content.get("n_inner") or 4 * content["n_embd"],
        "activation": _activation(content.get("activation_function", "gelu_new")),
        "norm_eps": content.get("layer_norm_epsilon", 1e-5),
        "max_positions": content["n_positions"],
        "tie_embeddings": content.get("tie_word_embeddings", True),
    }


def _write_gpt2(shape: ModelShape) -> dict[str, Any]:
    return {
        "n_embd": shape.hidden_size,
        "n_layer": shape.num_layers,
        "n_head": shape.num_heads,
        "n_inner": shape.intermediate_size,
        "activation_function": _THEIR_ACTIVATIONS.get(shape.activation, shape.activation),
        "layer_norm_epsilon": shape.norm_eps,
        "n_positions": shape.max_seq_len,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop"), shape.dropout),
        "attn_pdrop": 0.0,
    }


def _read_bert(content: Json) -> dict[str, Any]:
    _refuse(content, {"is_decoder": False, "position_embedding_type": "absolute"})
    return {
        **_BIASED,
        "family": "encoder",
        "norm_place": "post",
        "embed_norm": True,
        "hidden_size": content["hidden_size"],
        "num_layers": content["num_hidden_layers"],
        "num_heads": content["num_attention_heads"],
        "intermediate_size": content["intermediate_size"],
        "activation": _activation(content.get("hidden_act", "gelu")),
        "norm_eps": content.get("layer_norm_eps", 1e-12),
        "max_positions": content["max_position_embeddings"],
        "token_types": content.get("type_vocab_size", 2),
        "tie_embeddings": content.get("tie_word_embeddings", True),
    }


def _write_bert(shape: ModelShape) -> dict[str, Any]:
    return {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "intermediate_size": shape.intermediate_size,
        "hidden_act": _THEIR_ACTIVATIONS.get(shape.activation, shape.activation),
        "layer_norm_eps": shape.norm_eps,
        "max_position_embeddings": shape.max_seq_len,
        "type_vocab_size": shape.token_types,
        "hidden_dropout_prob": shape.dropout,
        "attention_probs_dropout_prob": 0.0,
    }


def _read_modernbert(content: Json) -> dict[str, Any]:
    _refuse(
        content,
        {"norm_bias": False, "decoder_bias": True, "classifier_bias": content.get("mlp_bias", False)},
    )
    _refuse(content, {"classifier_activation": content.get("hidden_activation", "gelu")})
    layers, every = content["num_hidden_layers"], content.get("global_attn_every_n_layers", 3)
    kinds = content.get("layer_types") or [
        "sliding_attention" if layer % every else "full_attention" for layer in range(layers)
    ]
    ropes = content.get("rope_parameters") or {}
    whole, local = (ropes.get(kind) or {} for kind in ("full_attention", "sliding_attention"))
    _refuse(whole, {"rope_type": "default"})
    _refuse(local, {"rope_type": "default"})
    return {
        "family": "encoder",
        "norm": "layer",
        "embed_norm": True,
        "hidden_size": content["hidden_size"],
        "num_layers": layers,
        "num_heads": content["num_attention_heads"],
        "intermediate_size": content["intermediate_size"],
        "activation": _activation(content.get("hidden_activation", "gelu")),
        "norm_eps": content.get("norm_eps", 1e-5),
        "attention_bias": content.get("attention_bias", False),
        "attention_out_bias": content.get("attention_bias", False),
        "mlp_bias": content.get("mlp_bias", False),
        "max_positions": content["max_position_embeddings"],
        "tie_embeddings": content.get("tie_word_embeddings", True),
        "rope_theta": whole.get("rope_theta", content.get("global_rope_theta", 160000.0)),
        "rope_theta_local": local.get("rope_theta", content.get("local_rope_theta", 10000.0)),
        "sliding_window": content.get("local_attention", 128) // 2 + 1,
        "window_pattern": "".join("L" if kind == "sliding_attention" else "G" for kind in kinds),
    }


def _write_modernbert(shape: ModelShape) -> dict[str, Any]:
    kinds = ["sliding_attention" if window else "full_attention" for window in shape.windows]
    return {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "intermediate_size": shape.intermediate_size,
        "hidden_activation": _THEIR_ACTIVATIONS.get(shape.activation, shape.activation),
        "classifier_activation": _THEIR_ACTIVATIONS.get(shape.activation, shape.activation),
        "norm_eps": shape.norm_eps,
        "attention_bias": shape.attention_bias,
        "mlp_bias": shape.mlp_bias,
        "classifier_bias": shape.mlp_bias,
        "max_position_embeddings": shape.max_seq_len,
        "local_attention": 2 * (max(shape.windows) - 1) if any(shape.windows) else 128,
        "layer_types": kinds,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": shape.rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": shape.rope_theta_local},
        },
    }


def _read_t5(content: Json) -> dict[str, Any]:
    """T5 1.0 ties its embedding and scales the decoder's output; 1.1 does neither."""
    first, _, name = content.get("feed_forward_proj", "relu").rpartition("-")
    tied = content.get("tie_word_embeddings", True)
    return {
        "family": "encoder_decoder",
        "hidden_size": content["d_model"],
        "num_encoder_layers": content["num_layers"],
        "num_layers": content.get("num_decoder_layers") or content["num_layers"],
        "num_heads": content["num_heads"],
        "head_dim": content["d_kv"],
        "intermediate_size": content["d_ff"],
        "gated": first == "gated",
        "activation": "gelu_tanh" if first == "gated" and name == "gelu" else _activation(name),
        "norm_eps": content.get("layer_norm_epsilon", 1e-6),
        "positions": "relative",
        "relative_buckets": content.get("relative_attention_num_buckets", 32),
        "relative_distance": content.get("relative_attention_max_distance", 128),
        "attention_scale": 1.0,
        "tie_embeddings": tied,
        "logit_scale": content["d_model"] ** -0.5 if content.get("scale_decoder_outputs", tied) else None,
    }


def _write_t5(shape: ModelShape) -> dict[str, Any]:
    name = "gelu" if shape.gated and shape.activation == "gelu_tanh" else shape.activation
    return {
        "d_model": shape.hidden_size,
        "num_layers": shape.num_encoder_layers,
        "num_decoder_layers": shape.num_layers,
        "num_heads": shape.num_heads,
        "d_kv": shape.head_dim,
        "d_ff": shape.intermediate_size,
        "feed_forward_proj": f"gated-{name}" if shape.gated else name,
        "layer_norm_epsilon": shape.norm_eps,
        "relative_attention_num_buckets": shape.relative_buckets,
        "relative_attention_max_distance": shape.relative_distance,
        "dropout_rate": shape.dropout,
        "is_encoder_decoder": True,
        "scale_decoder_outputs": shape.logit_scale != 1.0,
    }


def _causal(name: str, read: Read, write: Write) -> Architecture:
    return Architecture({"lm": f"{name}ForCausalLM"}, read, write)


_BERT_HEADS = {"lm": "ForMaskedLM", "span": "ForQuestionAnswering", "embedding": "Model"}
ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture({"lm": "GPT2LMHeadModel"}, _read_gpt2, _write_gpt2),
    "llama": _causal("Llama", _read_llama, _write_llama),
    "mistral": _causal("Mistral", _read_mistral, _write_mistral),
    "mixtral": _causal("Mixtral", _read_mixtral, _write_mixtral),
    "qwen2": _causal("Qwen2", _read_qwen, _write_qwen),
    "qwen3": _causal("Qwen3", _read_qwen, _write_qwen),
    "olmo2": _causal("Olmo2", _read_olmo2, _write_llama),
    "bert": Architecture({head: f"Bert{end}" for head, end in _BERT_HEADS.items()}, _read_bert, _write_bert),
    "modernbert": Architecture(
        {"lm": "ModernBertForMaskedLM", "embedding": "ModernBertModel"}, _read_modernbert, _write_modernbert
    ),
    "t5": Architecture({"lm": "T5ForConditionalGeneration"}, _read_t5, _write_t5),
}
