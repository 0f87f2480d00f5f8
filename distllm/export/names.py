"""The weights of each architecture: their names in distllm and in transformers, and their layout.

One table serves both directions. A rule joins several of their matrices by rows into one of ours
(queries, keys and values), or copies one, transposed where GPT-2 stores it so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distllm.config.huggingface_models import ARCHITECTURES
from distllm.config.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Rule:
    """One weight of ours.

    Attributes:
        ours: its name.
        theirs: the names of its parts, in order.
        rows: rows of each part; empty where there is one.
        transposed: whether theirs has inputs before outputs.
        experts: how many of theirs are stacked in ours; 0 where there are no experts.
    """

    ours: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...] = ()
    transposed: bool = False
    experts: int = 0

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return our weight from theirs."""
        whole = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
        if self.experts:
            return whole.view(self.experts, -1, whole.shape[1])
        return whole.T if self.transposed else whole

    def split(self, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield their weights, by name, from ours."""
        whole = weight.T if self.transposed else weight
        if self.experts:
            whole = weight.flatten(0, 1)
        parts = torch.split(whole, list(self.rows)) if self.rows else (whole,)
        yield from zip(self.theirs, parts, strict=True)


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
_LAYERS: Mapping[str, Mapping[str, tuple[str, Names]]] = {
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
_ENDS: Mapping[str, Mapping[str, str]] = {
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
# Names by which a weight is found too: T5's embedding as its stacks have it, norms as BERT's first had them.
_STACKS = tuple(f"{stack}.embed_tokens.weight" for stack in ("encoder", "decoder"))
_ALSO = {"shared.weight": _STACKS}
_FIRST_ENDS = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
# In layers, but no weights that a model needs: tables that it computes, and a leftover of T5 1.0.
_NEEDLESS = (
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".EncDecAttention.relative_attention_bias.weight",
)


def rules(model_type: str, shape: ModelShape, names: Iterable[str]) -> list[Rule]:
    """Return the rule of each of our weights ``names``.

    Raises:
        KeyError: the architecture has no such weight.
    """
    return [_rule(model_type, shape, name) for name in names]


def stored_names(model_type: str, name: str, *, tied: bool) -> Iterator[str]:
    """Yield the names by which their weight ``name`` may be stored, the usual one first."""
    embedding, output = ARCHITECTURES[model_type].twins
    names = [name, *_ALSO.get(name, ()), *((output,) if tied and name == embedding else ())]
    base = BASES.get(model_type, "")
    for each in names:
        yield each
        yield each.removeprefix(base)
        for usual, first in _FIRST_ENDS.items():
            if each.endswith(usual):
                yield each.removesuffix(usual) + first
                yield each.removeprefix(base).removesuffix(usual) + first


def in_layers(model_type: str, names: Iterable[str]) -> list[str]:
    """Return those of ``names`` that are weights of layers."""
    base = BASES.get(model_type, "")
    places = tuple(
        f"{start}."
        for place, _ in _LAYERS[model_type].values()
        for start in (place, place.removeprefix(base))
    )
    return [name for name in names if name.startswith(places) and not name.endswith(_NEEDLESS)]


def is_named(model_type: str, name: str) -> bool:
    """Whether an architecture has a name for our weight ``name``, one of a head."""
    ends = _ENDS[model_type]
    return name in ends or name.rpartition(".")[0] in ends


def _rule(model_type: str, shape: ModelShape, name: str) -> Rule:
    ends = _ENDS[model_type]
    stem, _, kind = name.rpartition(".")
    if name in ends:
        return Rule(name, (ends[name],))
    if stem in ends:
        return Rule(name, (f"{ends[stem]}.{kind}",))
    if shape.num_experts and ".mlp." in name:
        return _expert_rule(name, shape)
    stack, _, layer, part = stem.split(".", 3)
    place, table = _LAYERS[model_type][stack]
    theirs = table[part]
    parts = (theirs,) if isinstance(theirs, str) else theirs
    linear = model_type == "gpt2" and kind == "weight" and "norm" not in part
    return Rule(
        name,
        tuple(f"{place}.{layer}.{their}.{kind}" for their in parts),
        _rows(part, shape) if len(parts) > 1 else (),
        transposed=linear,
    )


def _expert_rule(name: str, shape: ModelShape) -> Rule:
    """Return the rule of Mixtral's router or of one kind of its experts' matrices."""
    _, _, layer, part = name.split(".", 3)
    place, count = f"model.layers.{layer}.block_sparse_moe", shape.num_experts
    if part == "mlp.router.weight":
        return Rule(name, (f"{place}.gate.weight",))
    kinds = ("w1", "w3") if part == "mlp.gate_up_proj" else ("w2",)
    rows = shape.intermediate_size if len(kinds) == 2 else shape.hidden_size
    theirs = tuple(f"{place}.experts.{expert}.{kind}.weight" for expert in range(count) for kind in kinds)
    return Rule(name, theirs, (rows,) * len(theirs), experts=count)


def _rows(part: str, shape: ModelShape) -> tuple[int, ...]:
    """Return the rows of the matrices that are joined in ``part``."""
    kv_width = shape.num_kv_heads * shape.head_dim
    if part.endswith("qkv_proj"):
        return shape.num_heads * shape.head_dim, kv_width, kv_width
    return (kv_width, kv_width) if part.endswith("kv_proj") else (shape.intermediate_size,) * 2
