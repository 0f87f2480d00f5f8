"""Checks of combinations of ``model`` keys."""

from __future__ import annotations

from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.schema_lora import JOINED
from distllm.config.schema_model import ModelConfig
from distllm.config.schema_optim import MUP_OPTIMIZERS
from distllm.config.steps import divisors, nearest_multiple


def check_model(config: Config, problems: Problems) -> None:
    """Check that the model's dimensions and options fit each other, and the rest of the configuration."""
    check_block(config.model, problems)
    _check_length(config, problems)
    _check_lora(config.model, problems)
    _check_mup(config, problems)
    problems.check(
        config.model.num_experts == 0 or not config.engine.compile,
        "blocks with experts cannot be compiled: the number of tokens of each expert changes in every step",
        keys=["model.num_experts", "engine.compile"],
        remedy="engine.compile=false",
    )


def check_block(model: ModelConfig, problems: Problems) -> None:
    """Check that the dimensions and options of the block fit each other."""
    _check_heads(model, problems)
    _check_positions(model, problems)
    _check_rope(model, problems)
    problems.check(
        bool(model.window_pattern) and set(model.window_pattern) <= set("LG"),
        f"window_pattern {model.window_pattern!r} may only contain the letters L and G",
        keys=["model.window_pattern"],
        remedy="write L for a layer with a window, G for a layer without: model.window_pattern=GLL",
    )
    problems.check(
        not model.norm_bias or model.norm == "layer",
        "norm_bias is for LayerNorm; RMSNorm has no bias",
        keys=["model.norm_bias", "model.norm"],
        remedy="model.norm=layer, or model.norm_bias=false",
    )
    problems.check(
        model.num_encoder_layers is None or model.family == "encoder_decoder",
        f"num_encoder_layers is given, but the family is {model.family}",
        keys=["model.num_encoder_layers", "model.family"],
        remedy="model.family=encoder_decoder, or model.num_encoder_layers=null (model.num_layers counts)",
    )
    problems.check(
        model.num_experts == 0 or (model.gated and not model.mlp_bias),
        "experts are gated MLPs without biases",
        keys=["model.num_experts", "model.gated", "model.mlp_bias"],
        remedy="model.gated=true model.mlp_bias=false, or model.num_experts=0",
    )
    problems.check(
        model.num_experts == 0 or model.experts_per_token <= model.num_experts,
        f"experts_per_token {model.experts_per_token} is more than num_experts {model.num_experts}",
        keys=["model.num_experts", "model.experts_per_token"],
        remedy=f"model.experts_per_token={model.num_experts} or less",
    )
    problems.check(
        model.token_types == 0 or model.family == "encoder",
        f"only encoders have token types, and the family is {model.family}",
        keys=["model.token_types", "model.family"],
        remedy="model.token_types=0",
    )


def _check_heads(model: ModelConfig, problems: Problems) -> None:
    divisible = model.hidden_size % model.num_heads == 0
    problems.check(
        model.head_dim is not None or divisible,
        f"hidden_size {model.hidden_size} is not divisible by num_heads {model.num_heads}",
        keys=["model.hidden_size", "model.num_heads"],
        remedy=f"model.hidden_size={nearest_multiple(model.hidden_size, model.num_heads)}",
    )
    problems.check(
        model.num_heads % (model.num_kv_heads or model.num_heads) == 0,
        f"num_heads {model.num_heads} is not divisible by num_kv_heads {model.num_kv_heads}",
        keys=["model.num_heads", "model.num_kv_heads"],
        remedy=f"use one of {', '.join(map(str, divisors(model.num_heads)))} for model.num_kv_heads",
    )
    head_dim = model.head_dim or model.hidden_size // model.num_heads
    given = model.head_dim is not None
    problems.check(
        model.positions != "rope" or not (given or divisible) or head_dim % 2 == 0,
        f"head size {head_dim} is odd; rotary positions rotate pairs of channels",
        keys=["model.head_dim"] if given else ["model.hidden_size", "model.num_heads"],
        remedy="choose an even model.head_dim"
        if given
        else "choose hidden_size and num_heads so that hidden_size / num_heads is even",
    )


def _check_positions(model: ModelConfig, problems: Problems) -> None:
    problems.check(
        model.positions != "sinusoidal" or model.hidden_size % 2 == 0,
        f"hidden_size {model.hidden_size} is odd; sinusoidal positions are pairs of sine and cosine",
        keys=["model.hidden_size", "model.positions"],
        remedy="choose an even model.hidden_size",
    )
    sides = 1 if model.family == "decoder" else 2
    problems.check(
        model.positions != "relative"
        or (
            model.relative_distance > model.relative_buckets // sides // 2
            and model.relative_buckets % (2 * sides) == 0
        ),
        f"{model.relative_buckets} buckets do not divide distances up to {model.relative_distance}",
        keys=["model.relative_buckets", "model.relative_distance"],
        remedy="use T5's model.relative_buckets=32 and model.relative_distance=128",
    )


def _check_length(config: Config, problems: Problems) -> None:
    model = config.model
    bounded = model.positions == "learned" and model.max_positions is not None
    problems.check(
        not bounded or config.data.seq_len <= (model.max_positions or 0),
        f"samples of {config.data.seq_len} tokens, but the model has {model.max_positions} positions",
        keys=["data.seq_len", "model.max_positions"],
        remedy=f"data.seq_len={model.max_positions}",
    )


def _check_rope(model: ModelConfig, problems: Problems) -> None:
    rope = model.rope
    problems.check(
        rope.scaling in ("none", "linear") or rope.original_len is not None,
        f"rope.scaling={rope.scaling} needs the context length before scaling",
        keys=["model.rope.original_len"],
        remedy="model.rope.original_len=8192, or the length that the model was first trained with",
    )
    problems.check(
        rope.scaling == "none" or model.positions == "rope",
        f"rope.scaling={rope.scaling} is for rotary positions, but positions are {model.positions}",
        keys=["model.rope.scaling", "model.positions"],
        remedy="model.rope.scaling=none, or model.positions=rope",
    )
    problems.check(
        rope.high_freq_factor > rope.low_freq_factor,
        f"high_freq_factor {rope.high_freq_factor} is not above low_freq_factor {rope.low_freq_factor}",
        keys=["model.rope.high_freq_factor", "model.rope.low_freq_factor"],
        remedy="use Llama 3's model.rope.low_freq_factor=1 and model.rope.high_freq_factor=4",
    )


def _check_lora(model: ModelConfig, problems: Problems) -> None:
    lora = model.lora
    if lora.rank == 0 and lora.init_from is None:
        return
    problems.check(
        model.init_from is not None,
        "adapters need a trained model, and model.init_from is not set",
        keys=["model.lora.rank", "model.init_from"],
        remedy="set it to a Hugging Face folder; for a model of your own: distllm export run=NAME, then "
        "model=hf model.init_from=runs/NAME/hf",
    )
    mlp = {*JOINED["gate_up_proj"], "down_proj"}
    absent = set() if model.gated else {"gate_proj"}
    absent |= mlp if model.num_experts else set()
    lacking = sorted(absent & set(lora.targets))
    problems.check(
        not lacking and bool(lora.targets),
        f"the model has no projection {', '.join(lacking)} to adapt"
        if lacking
        else "model.lora.targets is empty, so nothing would be trained",
        keys=["model.lora.targets"],
        remedy="model.lora.targets=[q_proj,v_proj], or others that the model has (experts have none)",
    )


def _check_mup(config: Config, problems: Problems) -> None:
    model, name = config.model, config.optim.name
    problems.check(
        model.mup.base_width is not None or model.mup.base_head_dim is None,
        "mup.base_head_dim is given without the base width",
        keys=["model.mup.base_head_dim", "model.mup.base_width"],
        remedy="set model.mup.base_width, or model.mup.base_head_dim=null",
    )
    if model.mup.base_width is None:
        return
    problems.check(
        name in MUP_OPTIMIZERS,
        f"muP scales the learning rates of Adam-like optimizers, and optim.name is {name}",
        keys=["optim.name", "model.mup.base_width"],
        remedy=f"use one of {', '.join(MUP_OPTIMIZERS)}, or model.mup.base_width=null",
    )
    problems.check(
        model.init_from is None,
        "muP needs randomly initialised weights, and model.init_from loads trained ones",
        keys=["model.init_from", "model.mup.base_width"],
        remedy="model.mup.base_width=null",
    )
