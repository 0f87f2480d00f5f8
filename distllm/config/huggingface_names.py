"""The names that transformers gives to the weights of each architecture, by ours. No torch."""

from __future__ import annotations

from collections.abc import Mapping

Names = Mapping[str, str | tuple[str, ...]]
# Ours below a layer to theirs; several names are joined.
_LLAMA: Names = {
    "input_layernorm": "input_layernorm",
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": "self_attn.o_proj",
    "self_attn.q_norm": "self_attn.q_norm",
    "self_attn.k_norm": "self_attn.k_norm",
    "post_attention_layernorm": "post_attention_layernorm",
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": "mlp.down_proj",
}
_OLMO2: Names = {
    **_LLAMA,
    "input_layernorm": "post_attention_layernorm",
    "post_attention_layernorm": "post_feedforward_layernorm",
}
_GPT2: Names = {
    "input_layernorm": "ln_1",
    "self_attn.qkv_proj": "attn.c_attn",
    "self_attn.o_proj": "attn.c_proj",
    "post_attention_layernorm": "ln_2",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}
_BERT: Names = {
    "self_attn.qkv_proj": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "self_attn.o_proj": "attention.output.dense",
    "input_layernorm": "attention.output.LayerNorm",
    "mlp.up_proj": "intermediate.dense",
    "mlp.down_proj": "output.dense",
    "post_attention_layernorm": "output.LayerNorm",
}
_MODERNBERT: Names = {
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn.Wqkv",
    "self_attn.o_proj": "attn.Wo",
    "post_attention_layernorm": "mlp_norm",
    "mlp.gate_up_proj": "mlp.Wi",
    "mlp.down_proj": "mlp.Wo",
}
_T5_ENCODER: Names = {
    "self_attn.qkv_proj": tuple(f"layer.0.SelfAttention.{part}" for part in "qkv"),
    "self_attn.o_proj": "layer.0.SelfAttention.o",
    "input_layernorm": "layer.0.layer_norm",
    "mlp.up_proj": "layer.1.DenseReluDense.wi",
    "mlp.gate_up_proj": ("layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1"),
    "mlp.down_proj": "layer.1.DenseReluDense.wo",
    "post_attention_layernorm": "layer.1.layer_norm",
}
_T5_DECODER: Names = {
    "cross_attn.q_proj": "layer.1.EncDecAttention.q",
    "cross_attn.kv_proj": ("layer.1.EncDecAttention.k", "layer.1.EncDecAttention.v"),
    "cross_attn.o_proj": "layer.1.EncDecAttention.o",
    "cross_attention_layernorm": "layer.1.layer_norm",
    **{
        ours: tuple(name.replace("layer.1.", "layer.2.") for name in theirs)
        if isinstance(theirs, tuple)
        else theirs.replace("layer.1.", "layer.2.")
        for ours, theirs in _T5_ENCODER.items()
    },
}
# Of each architecture: our stack and their layers, the names below a layer, and what is no layer.
LAYERS: Mapping[str, Mapping[str, tuple[str, Names]]] = {
    **{
        name: {"decoder": ("model.layers", _LLAMA)}
        for name in ("llama", "mistral", "qwen2", "qwen3", "mixtral")
    },
    "olmo2": {"decoder": ("model.layers", _OLMO2)},
    "gpt2": {"decoder": ("transformer.h", _GPT2)},
    "bert": {"encoder": ("bert.encoder.layer", _BERT)},
    "modernbert": {"encoder": ("model.layers", _MODERNBERT)},
    "t5": {"encoder": ("encoder.block", _T5_ENCODER), "decoder": ("decoder.block", _T5_DECODER)},
}
_LLAMA_ENDS = {
    "embed_tokens": "model.embed_tokens",
    "decoder.norm": "model.norm",
    "lm_head": "lm_head",
}
ENDS: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "olmo2", "mixtral"), _LLAMA_ENDS),
    "gpt2": {
        "embed_tokens": "transformer.wte",
        "embed_tokens.places": "transformer.wpe",
        "decoder.norm": "transformer.ln_f",
        "lm_head": "lm_head",
    },
    "bert": {
        "embed_tokens": "bert.embeddings.word_embeddings",
        "embed_tokens.places": "bert.embeddings.position_embeddings",
        "embed_tokens.types": "bert.embeddings.token_type_embeddings",
        "embed_tokens.norm": "bert.embeddings.LayerNorm",
        "head": "qa_outputs",
        "head.dense": "cls.predictions.transform.dense",
        "head.norm": "cls.predictions.transform.LayerNorm",
        "head.lm_head.weight": "cls.predictions.decoder.weight",
        "head.lm_head.bias": "cls.predictions.bias",
    },
    "modernbert": {
        "embed_tokens": "model.embeddings.tok_embeddings",
        "embed_tokens.norm": "model.embeddings.norm",
        "encoder.norm": "model.final_norm",
        "head.dense": "head.dense",
        "head.norm": "head.norm",
        "head.lm_head": "decoder",
    },
    "t5": {
        "embed_tokens": "shared",
        "encoder.norm": "encoder.final_layer_norm",
        "decoder.norm": "decoder.final_layer_norm",
        "encoder.relative": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "decoder.relative": "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "lm_head": "lm_head",
    },
}
# What their classes put before the names of a bare model, which some folders leave out.
BASES = {"gpt2": "transformer.", "bert": "bert.", "modernbert": "model."}
