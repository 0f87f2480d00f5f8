"""The keys of ``model``: one block, whose options make GPT-2, Llama, BERT, T5 and their relatives.

Numbers that follow from others are left open (null) and settled in `distllm.config.shape`. Presets
under ``conf/model`` name the combinations that were published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distllm.config.options import option
from distllm.config.schema_lora import LoraConfig

Family = Literal["decoder", "encoder", "encoder_decoder"]
Positions = Literal["rope", "learned", "sinusoidal", "alibi", "relative", "none"]
RopeScaling = Literal["none", "linear", "llama3", "yarn"]
NormPlace = Literal["pre", "post", "output"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True)
class RopeConfig:
    """How rotary frequencies are stretched to reach further than they were trained for."""

    scaling: RopeScaling = option(
        "none",
        "linear: all frequencies; llama3: the slow ones; yarn: the slow ones, and sharper attention",
        on_resume="identity",
    )
    factor: float = option(1.0, "how many times further positions reach", on_resume="identity", minimum=1.0)
    original_len: int | None = option(
        None, "context before stretching; llama3 and yarn need it", on_resume="identity", minimum=1
    )
    low_freq_factor: float = option(
        1.0, "llama3: turns in original_len below which all is stretched", on_resume="identity", minimum=0.0
    )
    high_freq_factor: float = option(
        4.0, "llama3: turns in original_len above which nothing is", on_resume="identity", minimum=0.0
    )
    beta_fast: float = option(
        32.0, "yarn: turns above which nothing is stretched", on_resume="identity", minimum=1e-3
    )
    beta_slow: float = option(
        1.0, "yarn: turns below which all is stretched", on_resume="identity", minimum=1e-3
    )
    attention_factor: float | None = option(
        None,
        "yarn: factor of rotated queries and keys; null means 0.1 ln(factor) + 1",
        on_resume="identity",
        minimum=1e-3,
    )


@dataclass(frozen=True)
class MupConfig:
    """Maximal update parametrisation: rates and initial weights found at one width serve at others."""

    base_width: int | None = option(
        None,
        "hidden_size at which optim.lr and init_std were tuned; null: no scaling with the width",
        on_resume="identity",
        minimum=1,
    )
    base_head_dim: int | None = option(
        None,
        "head_dim of that model; null: the same, so that the width grows by heads",
        on_resume="identity",
        minimum=1,
    )


@dataclass(frozen=True)
class ModelConfig:
    """A Transformer's shape."""

    family: Family = option(
        "decoder",
        "the stacks: decoder (GPT, Llama), encoder (BERT), encoder_decoder (T5)",
        on_resume="identity",
    )
    hidden_size: int = option(256, "width of the residual stream", on_resume="identity", minimum=1)
    num_layers: int = option(
        8,
        "blocks; of an encoder_decoder, those of its decoder",
        on_resume="identity",
        minimum=1,
        maximum=10_000,
    )
    num_encoder_layers: int | None = option(
        None,
        "an encoder_decoder's encoder blocks; null means num_layers",
        on_resume="identity",
        minimum=1,
        maximum=10_000,
    )
    num_heads: int = option(8, "query heads per attention", on_resume="identity", minimum=1, maximum=10_000)
    num_kv_heads: int | None = option(
        None, "key/value heads; null means num_heads", on_resume="identity", minimum=1
    )
    head_dim: int | None = option(
        None, "width of a head; null means hidden_size / num_heads", on_resume="identity", minimum=1
    )
    intermediate_size: int | None = option(
        None,
        "width of the MLP; null means 8/3 hidden_size if gated, else 4 hidden_size",
        on_resume="identity",
        minimum=1,
    )
    activation: Activation = option(
        "silu", "the MLP's activation; gelu_tanh is GPT-2's approximation", on_resume="identity"
    )
    gated: bool = option(True, "the MLP multiplies by a gate (SwiGLU, GEGLU)", on_resume="identity")
    norm: Literal["rms", "layer"] = option("rms", "RMSNorm or LayerNorm", on_resume="identity")
    norm_bias: bool = option(False, "LayerNorm adds a learned shift", on_resume="identity")
    norm_eps: float = option(1e-5, "epsilon of the norms", on_resume="identity", minimum=1e-12, maximum=1e-2)
    norm_place: NormPlace = option(
        "pre",
        "pre: before a sublayer; post: after its sum with the residual; output: on its output alone",
        on_resume="identity",
    )
    qk_norm: Literal["none", "head", "all"] = option(
        "none", "RMSNorm of queries and keys, per head or over all heads together", on_resume="identity"
    )
    attention_bias: bool = option(False, "queries, keys and values add a bias", on_resume="identity")
    attention_out_bias: bool = option(False, "the attention's output adds a bias", on_resume="identity")
    mlp_bias: bool = option(False, "the MLP's matrices add a bias", on_resume="identity")
    positions: Positions = option(
        "rope",
        "how positions are encoded: rope, learned, sinusoidal, alibi, relative (T5's buckets), none",
        on_resume="identity",
    )
    max_positions: int | None = option(
        None, "longest context; null means data.seq_len", on_resume="identity", minimum=1
    )
    rope_theta: float = option(
        10000.0, "base of the rotary position frequencies", on_resume="identity", minimum=2.0
    )
    rope_theta_local: float | None = option(
        None, "that base in sliding-window layers; null means rope_theta", on_resume="identity", minimum=2.0
    )
    rope: RopeConfig = option(None, "scaling of rotary positions to longer contexts", factory=RopeConfig)
    relative_buckets: int = option(32, "buckets of relative positions", on_resume="identity", minimum=4)
    relative_distance: int = option(
        128, "distance from which all relative positions share a bucket", on_resume="identity", minimum=2
    )
    sliding_window: int | None = option(
        None, "a query sees keys less than this far away; null sees all", on_resume="identity", minimum=1
    )
    window_pattern: str = option(
        "L",
        "which layers have the window, as a repeated pattern: L has it, G sees all (GLL)",
        on_resume="identity",
    )
    attention_softcap: float | None = option(
        None, "scores are squashed to ± this by tanh", on_resume="identity", minimum=1e-3
    )
    attention_scale: float | None = option(
        None, "factor of scores; null means head_dim ** -0.5", on_resume="identity", minimum=0.0
    )
    logit_softcap: float | None = option(
        None, "logits are squashed to ± this by tanh", on_resume="identity", minimum=1e-3
    )
    logit_scale: float | None = option(
        None, "factor of logits; null means 1", on_resume="identity", minimum=0.0
    )
    tie_embeddings: bool = option(
        True, "share the embedding with the output projection", on_resume="identity"
    )
    scale_embedding: bool = option(
        False, "multiply embeddings by the root of hidden_size", on_resume="identity"
    )
    embed_norm: bool = option(False, "normalise embeddings", on_resume="identity")
    token_types: int = option(
        0, "kinds of tokens with an embedding of their own", on_resume="identity", minimum=0
    )
    pooling: Literal["mean", "cls"] = option(
        "mean", "an encoder's vector of a text: the mean of its tokens, or its first", on_resume="identity"
    )
    num_experts: int = option(
        0,
        "experts in place of each MLP; 0 means one MLP for all tokens",
        on_resume="identity",
        minimum=0,
        maximum=100_000,
    )
    experts_per_token: int = option(2, "experts that a token is sent to", on_resume="identity", minimum=1)
    balance_loss: float = option(
        0.01, "factor of the loss that spreads tokens over experts", on_resume="schedule", minimum=0.0
    )
    dropout: float = option(
        0.0,
        "share of embeddings and sublayer outputs dropped in training",
        on_resume="schedule",
        minimum=0.0,
        maximum=0.9,
    )
    layer_drop: float = option(
        0.0,
        "share of rows that skip the last block in training; earlier blocks less (stochastic depth)",
        on_resume="schedule",
        minimum=0.0,
        maximum=0.9,
    )
    vocab_size: int | None = option(
        None,
        "rows of the embedding; null means the tokenizer's ids, rounded up to a multiple of 64",
        on_resume="identity",
        minimum=1,
    )
    init_from: str | None = option(
        None, "folder of a Hugging Face model or a peft adapter to start from; it sets the shape"
    )
    mup: MupConfig = option(None, "maximal update parametrisation", factory=MupConfig)
    lora: LoraConfig = option(None, "low-rank adapters, trained in place of the weights", factory=LoraConfig)
    init_std: float = option(
        0.02, "standard deviation of the initial weights", on_resume="identity", minimum=0.0
    )
