"""The weights of each architecture: their names in distllm and in transformers, and their layout.

One table serves both directions. "Ours" are weights of distllm, "theirs" those of transformers. A rule
joins several of their matrices by rows into one of ours (queries, keys and values), or copies one,
transposed for GPT-2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distllm.config.huggingface_models import ARCHITECTURES
from distllm.config.huggingface_names import BASES, ENDS, LAYERS
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


# Other names of a weight: T5's embedding in its stacks, norms in BERT's first checkpoints.
_STACKS = tuple(f"{stack}.embed_tokens.weight" for stack in ("encoder", "decoder"))
_ALSO = {"shared.weight": _STACKS}
_FIRST_ENDS = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
# Tensors in layers that no model needs: tables that it computes itself, and a leftover of T5 1.0.
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
        f"{start}." for place, _ in LAYERS[model_type].values() for start in (place, place.removeprefix(base))
    )
    return [name for name in names if name.startswith(places) and not name.endswith(_NEEDLESS)]


def is_named(model_type: str, name: str) -> bool:
    """Whether an architecture has a name for our weight ``name``, one of a head."""
    ends = ENDS[model_type]
    return name in ends or name.rpartition(".")[0] in ends


def _rule(model_type: str, shape: ModelShape, name: str) -> Rule:
    ends = ENDS[model_type]
    stem, _, kind = name.rpartition(".")
    if name in ends:
        return Rule(name, (ends[name],))
    if stem in ends:
        return Rule(name, (f"{ends[stem]}.{kind}",))
    if shape.num_experts and ".mlp." in name:
        return _expert_rule(name, shape)
    stack, _, layer, part = stem.split(".", 3)
    place, table = LAYERS[model_type][stack]
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
