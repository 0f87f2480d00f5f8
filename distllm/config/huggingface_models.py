"""How each architecture of transformers describes a model: fields of ``config.json``, both ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
from distllm.config.huggingface_llama import (
    read_llama,
    read_mistral,
    read_mixtral,
    read_olmo2,
    read_qwen,
    write_llama,
    write_mistral,
    write_mixtral,
    write_qwen,
)
from distllm.config.shape import ModelShape
from distllm.errors import ConfigError

Read = Callable[[Json], dict[str, Any]]
Write = Callable[[ModelShape], dict[str, Any]]
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
        twins: the names of the embedding and of the output projection, which are one weight if tied.
        unsaid: what transformers takes a field to be that a config.json leaves out.
        always_tied: whether a folder without an output projection ties it, whatever its config.json says.
    """

    classes: Mapping[str, str]
    read: Read
    write: Write
    twins: tuple[str, str] = ("model.embed_tokens.weight", "lm_head.weight")
    unsaid: Mapping[str, Any] = field(default_factory=dict)
    always_tied: bool = False


def _read_gpt2(content: Json) -> dict[str, Any]:
    refuse(
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
        "activation": read_activation(content.get("activation_function", "gelu_new")),
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
        "activation_function": write_activation(shape.activation),
        "layer_norm_epsilon": shape.norm_eps,
        "n_positions": shape.max_seq_len,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop"), shape.dropout),
        "attn_pdrop": 0.0,
    }


def _read_bert(content: Json) -> dict[str, Any]:
    refuse(content, {"is_decoder": False, "position_embedding_type": "absolute"})
    return {
        **_BIASED,
        **read_sizes(content),
        "family": "encoder",
        "norm_place": "post",
        "embed_norm": True,
        "activation": read_activation(content.get("hidden_act", "gelu")),
        "norm_eps": content.get("layer_norm_eps", 1e-12),
        "token_types": content.get("type_vocab_size", 2),
        "tie_embeddings": content.get("tie_word_embeddings", True),
    }


def _write_bert(shape: ModelShape) -> dict[str, Any]:
    return {
        **write_sizes(shape),
        "hidden_act": write_activation(shape.activation),
        "layer_norm_eps": shape.norm_eps,
        "type_vocab_size": shape.token_types,
        "hidden_dropout_prob": shape.dropout,
        "attention_probs_dropout_prob": 0.0,
    }


def _read_modernbert(content: Json) -> dict[str, Any]:
    refuse(
        content,
        {
            "norm_bias": False,
            "decoder_bias": True,
            "classifier_bias": content.get("mlp_bias", False),
            "classifier_activation": content.get("hidden_activation", "gelu"),
            "rope_scaling": None,
        },
    )
    layers, every = content["num_hidden_layers"], content["global_attn_every_n_layers"]
    ropes = content.get("rope_parameters") or {}
    whole, local = (ropes.get(kind) or {} for kind in ("full_attention", "sliding_attention"))
    refuse(whole, {"rope_type": "default"})
    refuse(local, {"rope_type": "default"})
    return {
        **read_sizes(content),
        **read_biases(content),
        "family": "encoder",
        "norm": "layer",
        "embed_norm": True,
        "activation": read_activation(content.get("hidden_activation", "gelu")),
        "norm_eps": content.get("norm_eps", 1e-5),
        "tie_embeddings": content.get("tie_word_embeddings", True),
        "rope_theta": whole.get("rope_theta", content["global_rope_theta"]),
        "rope_theta_local": local.get("rope_theta", content["local_rope_theta"]),
        "sliding_window": content["local_attention"] // 2 + 1,
        "window_pattern": read_window_pattern(content, [layer % every > 0 for layer in range(layers)]),
    }


def _write_modernbert(shape: ModelShape) -> dict[str, Any]:
    return {
        **write_sizes(shape),
        **write_biases(shape),
        "hidden_activation": write_activation(shape.activation),
        "classifier_activation": write_activation(shape.activation),
        "norm_eps": shape.norm_eps,
        "classifier_bias": shape.mlp_bias,
        "local_attention": 2 * (max(shape.windows) - 1) if any(shape.windows) else 128,
        "layer_types": write_layer_types(shape),
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": shape.rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": shape.rope_theta_local},
        },
    }


def _read_t5(content: Json) -> dict[str, Any]:
    """T5 1.0 ties its embedding and scales the decoder's output; 1.1 does neither."""
    first, _, name = content.get("feed_forward_proj", "relu").rpartition("-")
    if first not in ("", "gated"):
        raise ConfigError(
            f"feed_forward_proj={content['feed_forward_proj']!r} cannot be read",
            where="feed_forward_proj",
            remedy="use a model with an activation, or with gated- and an activation",
        )
    act = "gelu_new" if (first, name) == ("gated", "gelu") else name
    refuse(content, {"is_encoder_decoder": True, "is_gated_act": first == "gated", "dense_act_fn": act})
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
        "activation": read_activation(act),
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


_UNSAID = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0}
_UNSAID_QWEN = {**_UNSAID, "num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}
_UNSAID_MIXTRAL = {
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "num_key_value_heads": 8,
    "sliding_window": None,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.001,
}
_UNSAID_MODERNBERT = {
    "classifier_bias": False,
    "classifier_activation": "gelu",
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
    "local_attention": 128,
}


def _causal(name: str, read: Read, write: Write, unsaid: Json) -> Architecture:
    return Architecture({"lm": f"{name}ForCausalLM"}, read, write, unsaid=unsaid)


_BERT_HEADS = {"lm": "ForMaskedLM", "span": "ForQuestionAnswering", "embedding": "Model"}
ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture(
        {"lm": "GPT2LMHeadModel"}, _read_gpt2, _write_gpt2, ("transformer.wte.weight", "lm_head.weight")
    ),
    "llama": _causal("Llama", read_llama, write_llama, _UNSAID),
    "mistral": _causal(
        "Mistral",
        read_mistral,
        write_mistral,
        {**_UNSAID, "num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "mixtral": _causal("Mixtral", read_mixtral, write_mixtral, _UNSAID_MIXTRAL),
    "qwen2": _causal("Qwen2", read_qwen, write_qwen, _UNSAID_QWEN),
    "qwen3": _causal("Qwen3", read_qwen, write_qwen, {**_UNSAID_QWEN, "head_dim": 128}),
    "olmo2": _causal("Olmo2", read_olmo2, write_llama, {**_UNSAID, "rms_norm_eps": 1e-5}),
    "bert": Architecture(
        {head: f"Bert{end}" for head, end in _BERT_HEADS.items()},
        _read_bert,
        _write_bert,
        ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    ),
    "modernbert": Architecture(
        {"lm": "ModernBertForMaskedLM", "embedding": "ModernBertModel"},
        _read_modernbert,
        _write_modernbert,
        ("model.embeddings.tok_embeddings.weight", "decoder.weight"),
        _UNSAID_MODERNBERT,
    ),
    "t5": Architecture(
        {"lm": "T5ForConditionalGeneration"},
        _read_t5,
        _write_t5,
        ("shared.weight", "lm_head.weight"),
        always_tied=True,
    ),
}
