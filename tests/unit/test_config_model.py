"""Presets have their published sizes, and what is invalid is refused with a remedy."""

from pathlib import Path

import pytest
import yaml

from distllm.config.checks_model import check_model
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.schema_lora import LoraConfig
from distllm.config.schema_model import ModelConfig, RopeConfig
from distllm.config.shape import settle_shape
from distllm.config.validate import build

PRESETS = Path(__file__).parents[2] / "conf" / "model"
# Millions of parameters with the published vocabulary and context, from the papers or model cards.
PUBLISHED = {
    "bert-base": (30522, 512, 109.5),
    "gpt2": (50257, 1024, 124.4),
    "gpt2-xl": (50257, 1024, 1557.6),
    "llama-1b": (128256, 2048, 1235.8),
    "llama2-7b": (32000, 4096, 6738.4),
    "llama3-8b": (128256, 8192, 8030.3),
    "mistral-7b": (32000, 8192, 7241.7),
    "mixtral-8x7b": (32000, 32768, 46702.8),
    "modernbert-base": (50368, 8192, 149.7),
    "olmo2-7b": (100352, 4096, 7298.6),
    "qwen3-0.6b": (151936, 4096, 596.0),
    "t5-base": (32128, 512, 222.9),
    "t5-small": (32128, 512, 60.5),
    "transformer-base": (37000, 512, 63.1),
}


def preset(name):
    problems = Problems()
    model = build(ModelConfig, yaml.safe_load((PRESETS / f"{name}.yaml").read_text()), problems)
    check_model(Config(model=model), problems)
    problems.raise_if_any()
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_their_published_size(name):
    vocab, context, millions = PUBLISHED[name]
    assert settle_shape(preset(name), vocab, context).num_params / 1e6 == pytest.approx(millions, rel=1e-3)


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset_makes_a_model_and_says_what_it_is(name):
    assert settle_shape(preset(name), 1000, 128).num_params > 0
    assert (PRESETS / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*-tiny.yaml")))
def test_tiny_presets_are_counted_as_built(name):
    from distllm.models.init import bare_model

    shape = settle_shape(preset(name), 500, 64)
    import torch

    with torch.device("meta"):
        model = bare_model(shape)
    model.tie_weights()
    assert sum(weight.numel() for weight in model.parameters()) == shape.num_params


REFUSED = {
    "heads that do not divide the width": (
        {"hidden_size": 100, "num_heads": 8},
        "hidden_size 100 is not divisible by num_heads 8",
        "model.hidden_size=96",
    ),
    "queries that key heads do not divide": (
        {"num_heads": 8, "num_kv_heads": 3},
        "num_heads 8 is not divisible by num_kv_heads 3",
        "1, 2, 4, 8",
    ),
    "adapters of nothing": (
        {"lora": LoraConfig(rank=4)},
        "adapters need a trained model",
        "distllm export run=NAME",
    ),
    "an adapter without a projection": (
        {"lora": LoraConfig(rank=4, targets=("gate_proj",)), "gated": False, "init_from": "x"},
        "no projection gate_proj",
        "model.lora.targets=[q_proj,v_proj]",
    ),
    "adapters of experts": (
        {"lora": LoraConfig(rank=4, targets=("up_proj", "q_proj")), "num_experts": 4, "init_from": "x"},
        "no projection up_proj",
        "experts have none",
    ),
    "adapters nowhere": (
        {"lora": LoraConfig(rank=4, targets=()), "init_from": "x"},
        "nothing would be trained",
        "model.lora.targets=[q_proj,v_proj]",
    ),
    "an odd head": (
        {"hidden_size": 24, "num_heads": 8},
        "head size 3 is odd",
        "hidden_size / num_heads is even",
    ),
    "a given odd head": (
        {"head_dim": 3},
        "head size 3 is odd",
        "an even model.head_dim",
    ),
    "an odd width with sines": (
        {"hidden_size": 9, "num_heads": 3, "positions": "sinusoidal"},
        "pairs of sine and cosine",
        "an even model.hidden_size",
    ),
    "buckets for no distance": (
        {"positions": "relative", "relative_buckets": 32, "relative_distance": 16},
        "32 buckets do not divide distances up to 16",
        "model.relative_distance=128",
    ),
    "buckets that two directions cannot share": (
        {"family": "encoder", "positions": "relative", "relative_buckets": 6},
        "6 buckets",
        "model.relative_buckets=32",
    ),
    "llama3 without the context it stretches": (
        {"rope": RopeConfig("llama3", 8.0)},
        "needs the context length before scaling",
        "model.rope.original_len=8192",
    ),
    "stretched positions that do not turn": (
        {"positions": "learned", "rope": RopeConfig("linear", 2.0)},
        "positions are learned",
        "model.rope.scaling=none",
    ),
    "frequencies upside down": (
        {"rope": RopeConfig("llama3", 8.0, 8192, 4.0, 1.0)},
        "high_freq_factor 1.0 is not above low_freq_factor 4.0",
        "model.rope.low_freq_factor=1",
    ),
    "a pattern of other letters": (
        {"window_pattern": "GS"},
        "'GS' may only contain the letters L and G",
        "model.window_pattern=GLL",
    ),
    "a pattern of nothing": (
        {"window_pattern": ""},
        "'' may only contain the letters L and G",
        "model.window_pattern=GLL",
    ),
    "a shift of RMSNorm": (
        {"norm_bias": True},
        "RMSNorm has no bias",
        "model.norm=layer",
    ),
    "encoder layers of a decoder": (
        {"num_encoder_layers": 2},
        "the family is decoder",
        "model.family=encoder_decoder",
    ),
    "experts without a gate": (
        {"num_experts": 4, "gated": False},
        "experts are gated MLPs",
        "model.num_experts=0",
    ),
    "more experts than there are": (
        {"num_experts": 2, "experts_per_token": 3},
        "experts_per_token 3 is more than num_experts 2",
        "model.experts_per_token=2",
    ),
    "token types of a decoder": (
        {"token_types": 2},
        "only encoders have token types",
        "model.token_types=0",
    ),
}


@pytest.mark.parametrize(("options", "cause", "remedy"), REFUSED.values(), ids=REFUSED.keys())
def test_what_makes_no_model_is_refused(options, cause, remedy):
    problems = Problems()
    check_model(Config(model=ModelConfig(**options)), problems)
    (problem,) = problems.found
    assert cause in problem.cause
    assert remedy in problem.remedy
    assert "model." in problem.where


ALLOWED = {
    "an odd head without rotary positions": {"hidden_size": 24, "num_heads": 8, "positions": "alibi"},
    "a head of its own width": {"hidden_size": 100, "num_heads": 8, "head_dim": 16},
    "encoder layers of a pair": {"family": "encoder_decoder", "num_encoder_layers": 3},
    "token types of an encoder": {"family": "encoder", "token_types": 2},
    "a shift of LayerNorm": {"norm": "layer", "norm_bias": True},
    "yarn": {"rope": RopeConfig("yarn", 4.0, 4096)},
}


@pytest.mark.parametrize("options", ALLOWED.values(), ids=ALLOWED.keys())
def test_what_makes_a_model_is_not_refused(options):
    problems = Problems()
    check_model(Config(model=ModelConfig(**options)), problems)
    assert not problems.found


SETTLED = {
    "gated width": ({"hidden_size": 192}, "intermediate_size", 512),
    "plain width": ({"hidden_size": 192, "gated": False}, "intermediate_size", 768),
    "given width": ({"intermediate_size": 7}, "intermediate_size", 7),
    "own heads": ({"num_heads": 8}, "num_kv_heads", 8),
    "head": ({"hidden_size": 192, "num_heads": 6}, "head_dim", 32),
    "given head": ({"head_dim": 10}, "head_dim", 10),
    "scale": ({"head_dim": 16}, "attention_scale", 0.25),
    "given scale": ({"attention_scale": 1.0}, "attention_scale", 1.0),
    "context": ({}, "max_seq_len", 33),
    "given context": ({"max_positions": 99}, "max_seq_len", 99),
    "vocabulary": ({}, "vocab_size", 64),
    "local base": ({"rope_theta": 5.0}, "rope_theta_local", 5.0),
    "no windows": ({"num_layers": 3}, "windows", (0, 0, 0)),
    "windows": ({"num_layers": 3, "sliding_window": 4}, "windows", (4, 4, 4)),
    "alternating": (
        {"num_layers": 4, "sliding_window": 4, "window_pattern": "GLL"},
        "windows",
        (0, 4, 4, 0),
    ),
    "windows of a deeper encoder": (
        {"num_layers": 1, "num_encoder_layers": 3, "sliding_window": 2, "window_pattern": "LG"},
        "windows",
        (2, 0, 2),
    ),
    "bias of no RMSNorm": ({"norm_bias": True}, "norm_bias", False),
    "first norm": ({"embed_norm": True}, "norm_first", False),
    "first norm after": ({"embed_norm": True, "norm_place": "post"}, "norm_first", True),
    "last norm": ({}, "norm_last", True),
    "last norm after": ({"norm_place": "post"}, "norm_last", False),
    "last norm of outputs": ({"norm_place": "output"}, "norm_last", True),
}


@pytest.mark.parametrize(("options", "name", "value"), SETTLED.values(), ids=SETTLED.keys())
def test_what_is_left_open_is_settled(options, name, value):
    assert getattr(settle_shape(ModelConfig(**options), 60, 33), name) == value
