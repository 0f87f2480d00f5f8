"""A model's shape with every number derived, as the model code, the planner and export read it.

Imports no torch, so that a login node can count parameters.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from distllm.config.schema_lora import JOINED, LoraConfig
from distllm.config.schema_model import (
    Activation,
    Family,
    ModelConfig,
    NormPlace,
    Positions,
    RopeConfig,
)

MLP_MULTIPLE = 64
VOCAB_MULTIPLE = 64


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Settled dimensions and options of a model.

    ``vocab_size`` counts the padding rows of the embedding; ``max_seq_len`` is the longest context.
    Options are explained in `distllm.config.schema_model`; ``mup`` is the width over that of the base model,
    1 without muP, and multiplies in ``logit_scale`` and ``attention_scale`` already.
    """

    family: Family
    hidden_size: int
    num_layers: int
    num_encoder_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_seq_len: int
    activation: Activation
    gated: bool
    layer_norm: bool
    norm_bias: bool
    norm_eps: float
    norm_place: NormPlace
    qk_norm: str
    attention_bias: bool
    attention_out_bias: bool
    mlp_bias: bool
    positions: Positions
    rope_theta: float
    rope_theta_local: float
    rope: RopeConfig
    relative_buckets: int
    relative_distance: int
    windows: tuple[int, ...]
    attention_softcap: float
    attention_scale: float
    logit_softcap: float
    logit_scale: float
    tie_embeddings: bool
    scale_embedding: bool
    embed_norm: bool
    token_types: int
    pooling: str
    num_experts: int
    experts_per_token: int
    balance_loss: float
    dropout: float
    layer_drop: float
    init_std: float
    mup: float = 1.0

    @property
    def norm_first(self) -> bool:
        """Whether the first attention has a norm before it: not if its input is normalised already."""
        return not (self.embed_norm and self.norm_place == "pre")

    @property
    def norm_last(self) -> bool:
        """Whether a norm follows the last block: not if the block ends with one."""
        return self.norm_place != "post"

    @property
    def norm_params(self) -> int:
        """Parameters of one norm of the residual stream."""
        return self.hidden_size * (2 if self.norm_bias else 1)

    @property
    def attention_params(self) -> int:
        """Parameters of one attention."""
        width, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        matrices = 2 * self.hidden_size * (width + kv)
        biases = self.attention_bias * (width + 2 * kv) + self.attention_out_bias * self.hidden_size
        norms = {"none": 0, "head": 2 * self.head_dim, "all": width + kv}[self.qk_norm]
        return matrices + biases + norms

    @property
    def mlp_params(self) -> int:
        """Parameters of one MLP, or of all experts and their router."""
        first = (1 + self.gated) * self.intermediate_size
        biases = self.mlp_bias * (first + self.hidden_size)
        one = (first + self.intermediate_size) * self.hidden_size + biases
        return self.num_experts * (one + self.hidden_size) if self.num_experts else one

    def stack_params(self, num_layers: int, *, cross: bool = False) -> int:
        """Parameters of ``num_layers`` blocks, with the last norm and relative positions."""
        attentions = 2 if cross else 1
        block = attentions * self.attention_params + self.mlp_params + (attentions + 1) * self.norm_params
        ends = self.norm_params * (self.norm_last - (not self.norm_first))
        relative = self.positions == "relative"
        return num_layers * block + ends + relative * self.relative_buckets * self.num_heads

    @property
    def num_params(self) -> int:
        """Parameters of the whole model as a language model, a tied embedding counted once."""
        d, vocab = self.hidden_size, self.vocab_size
        rows = vocab + self.token_types + (self.max_seq_len if self.positions == "learned" else 0)
        total = rows * d + self.embed_norm * self.norm_params
        total += 0 if self.tie_embeddings else vocab * d
        if self.family == "encoder":
            total += d * d + self.mlp_bias * d + self.norm_params + vocab  # its head: dense, norm, bias
        if self.family == "encoder_decoder":
            total += self.stack_params(self.num_encoder_layers)
        return total + self.stack_params(self.num_layers, cross=self.family == "encoder_decoder")

    def rows_of(self, matrix: str) -> dict[str, int]:
        """Return the rows of each projection that a matrix of a block holds; nothing of other names."""
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        sizes = {
            "q_proj": query, "k_proj": key, "v_proj": key, "o_proj": self.hidden_size,
            "gate_proj": self.intermediate_size, "up_proj": self.intermediate_size,
            "down_proj": self.hidden_size,
        }  # fmt: skip
        return {part: sizes[part] for part in JOINED.get(matrix, (matrix,)) if part in sizes}

    def adapter_params(self, lora: LoraConfig) -> int:
        """Parameters of low-rank adapters: inputs plus outputs, times the rank, of each projection."""
        hidden, query, kv = (
            self.hidden_size,
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
        )
        of_attention = {"q_proj": query, "k_proj": kv, "v_proj": kv, "o_proj": query}
        attention = sum(hidden + width for name, width in of_attention.items() if name in lora.targets)
        mlps = len({"gate_proj", "up_proj", "down_proj"} & set(lora.targets))
        mlp = mlps * (hidden + self.intermediate_size)
        if self.family != "encoder_decoder":
            return lora.rank * self.num_layers * (attention + mlp)
        decoder = self.num_layers * (2 * attention + mlp)
        return lora.rank * (self.num_encoder_layers * (attention + mlp) + decoder)


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


def settle_shape(model: ModelConfig, vocab_size: int, seq_len: int) -> ModelShape:
    """Derive the values that ``model`` leaves open.

    Args:
        model: the configured shape; without ``head_dim``, ``hidden_size`` must be a multiple of
            ``num_heads``.
        vocab_size: ids of the tokenizer, padded here to a multiple of 64 for aligned matrices.
        seq_len: tokens per sample, the longest context the model is trained on.
    """
    head_dim = model.head_dim or model.hidden_size // model.num_heads
    mup = model.hidden_size / (model.mup.base_width or model.hidden_size)
    base_head = (model.mup.base_width and model.mup.base_head_dim) or head_dim
    wide = round_up(8 * model.hidden_size // 3, MLP_MULTIPLE) if model.gated else 4 * model.hidden_size
    copied: dict[str, Any] = {name: getattr(model, name) for name in _COPIED}
    return ModelShape(
        **copied,
        num_encoder_layers=model.num_encoder_layers or model.num_layers,
        num_kv_heads=model.num_kv_heads or model.num_heads,
        head_dim=head_dim,
        intermediate_size=model.intermediate_size or wide,
        vocab_size=model.vocab_size or round_up(vocab_size, VOCAB_MULTIPLE),
        max_seq_len=model.max_positions or seq_len,
        layer_norm=model.norm == "layer",
        norm_bias=model.norm == "layer" and model.norm_bias,
        rope_theta_local=model.rope_theta_local or model.rope_theta,
        windows=_windows(model),
        attention_softcap=model.attention_softcap or 0.0,
        attention_scale=(model.attention_scale or base_head**-0.5) * (base_head / head_dim),
        logit_softcap=model.logit_softcap or 0.0,
        logit_scale=(model.logit_scale or 1.0) / mup,
        mup=mup,
    )


_SETTLED = {
    "num_encoder_layers", "num_kv_heads", "head_dim", "intermediate_size", "vocab_size", "max_seq_len",
    "layer_norm", "norm_bias", "rope_theta_local", "windows", "attention_softcap", "attention_scale",
    "logit_softcap", "logit_scale", "mup",
}  # fmt: skip
_COPIED = tuple(field.name for field in dataclasses.fields(ModelShape) if field.name not in _SETTLED)
"""Fields that are the same in `ModelConfig`."""


def _windows(model: ModelConfig) -> tuple[int, ...]:
    """Return each layer's window, 0 where it sees everything."""
    pattern = model.window_pattern
    return tuple(
        (model.sliding_window or 0) if pattern[layer % len(pattern)] == "L" else 0
        for layer in range(max(model.num_layers, model.num_encoder_layers or 0))
    )
