"""muP: what scales with the width, that training then looks alike at every width, and that it can leave."""

from dataclasses import replace

import pytest
import torch
from coordinates import movements

from distllm.config.checks_model import check_model
from distllm.config.mup import role_of
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.schema_model import ModelConfig, MupConfig
from distllm.config.schema_optim import OptimConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.config.shape import settle_shape
from distllm.data.tokenizer import Tokenizer
from distllm.dist.local import LocalEngine
from distllm.dist.topology import Topology
from distllm.export.hf import export_hf
from distllm.export.plain import fold_output_multiplier
from distllm.export.verify import verify_export
from distllm.models.init import build_model
from distllm.optim.groups import describe_groups
from distllm.optim.optimizers import build_optimizer, groups_of

WIDE = ModelConfig(
    hidden_size=128, num_layers=2, num_heads=8, tie_embeddings=False, mup=MupConfig(base_width=32)
)


def model_of(config, **more):
    return build_model(settle_shape(config, 128, 16), seed=0, **more)


@pytest.mark.parametrize("name", ["block 1", "attention 2", "block 2", "logits"])
def test_training_moves_activations_alike_at_every_width(checked, name):
    narrow, wide = ({mup: checked[width, mup][name] for mup in (True, False)} for width in (32, 256))
    grown = {mup: wide[mup][-1] / narrow[mup][-1] for mup in (True, False)}
    assert 0.4 < grown[True] < 2.0
    assert grown[False] > 2.5 * grown[True]


@pytest.fixture(scope="module")
def checked():
    return {
        (width, mup): movements(width, mup, steps=3, base=32) for width in (32, 256) for mup in (True, False)
    }


def test_the_base_width_is_the_plain_model():
    plain = replace(WIDE, mup=MupConfig())
    base = replace(WIDE, mup=MupConfig(base_width=128))
    assert settle_shape(base, 128, 16) == settle_shape(plain, 128, 16)


def test_table_8_by_name():
    model = model_of(WIDE)
    assert (model.shape.mup, model.shape.logit_scale) == (4.0, 0.25)
    assert model.shape.attention_scale == 16**-0.5
    std = {name: weight.std().item() for name, weight in model.named_parameters() if weight.ndim == 2}
    assert std["embed_tokens.weight"] == pytest.approx(0.02, rel=0.05)
    assert std["lm_head.weight"] == pytest.approx(0.02, rel=0.05)
    assert std["decoder.layers.0.self_attn.qkv_proj.weight"] == pytest.approx(0.01, rel=0.05)
    assert std["decoder.layers.0.mlp.down_proj.weight"] == pytest.approx(0.01 / 2, rel=0.05)  # and by depth
    roles = {name: role_of(name, weight.ndim) for name, weight in model.named_parameters()}
    assert {name for name, role in roles.items() if role == "hidden"} == {n for n in std if "layers" in n}
    assert role_of("decoder.layers.0.mlp.router.weight", 2) == role_of("head.weight", 2) == "output"
    assert role_of("decoder.relative.weight", 2) == role_of("decoder.layers.0.self_attn.qkv_proj.bias", 1)


def test_wider_heads_are_scaled_by_their_width_not_its_root():
    config = replace(WIDE, num_heads=2, mup=MupConfig(base_width=32, base_head_dim=16))
    assert settle_shape(config, 128, 16).attention_scale == pytest.approx(16**-0.5 * 16 / 64)


@pytest.mark.parametrize(("name", "decay"), [("adamw", 0.4), ("lion", 0.4), ("adam", 0.1)])
def test_matrices_between_widths_have_their_own_rate(name, decay):
    """Decay that is multiplied by the rate is not to vanish with the width."""
    groups = groups_of(model_of(WIDE), OptimConfig(name=name), 4.0)
    assert [(group.lr_scale, group.weight_decay) for group in groups] == [
        (1.0, 0.1),
        (0.25, decay),
        (1.0, 0.0),
    ]
    assert describe_groups(groups).splitlines()[2].split()[:3] == ["rate", "x", "0.25"]


def test_engines_multiply_the_rate_of_a_group():
    from distllm.config.engine import deepspeed_json

    settings = deepspeed_json(
        zero_stage=0, micro_batch_size=1, grad_accum_steps=1, world_size=1, grad_clip=0.0, compute="fp32",
        bucket_bytes=4096, device="cpu",
    )  # fmt: skip
    model = model_of(WIDE)
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.0), 4.0)
    engine = LocalEngine(model, optimizer, settings, Topology.single())
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    engine.backward(sum(weight.sum() for weight in model.parameters()))
    engine.step(0.01)
    moved = {name: float((before[name] - weight).mean()) for name, weight in model.named_parameters()}
    assert moved["embed_tokens.weight"] == pytest.approx(0.01, rel=1e-3)
    assert moved["decoder.layers.0.mlp.down_proj.weight"] == pytest.approx(0.0025, rel=1e-3)
    assert moved["decoder.norm.weight"] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_the_multiplier_of_logits_is_folded_for_transformers(tmp_path, tied):
    pytest.importorskip("transformers")
    tokenizer = Tokenizer.train(["the cat sat on the mat"] * 4, TokenizerConfig(vocab_size=262))
    model = build_model(settle_shape(replace(WIDE, tie_embeddings=tied), 262, 16), seed=0).eval()
    tokens = torch.arange(8).view(1, 8)
    before = model(tokens, tokens)
    fold_output_multiplier(model)
    assert torch.allclose(model(tokens, tokens), before, atol=1e-6)
    export_hf(model.state_dict(), model.shape, tokenizer, tmp_path / "hf", {})
    assert verify_export(tmp_path / "hf", model) <= 1e-5


@pytest.mark.parametrize(
    ("optim", "model", "cause"),
    [
        ({"name": "sgd"}, {}, "muP scales the learning rates of Adam"),
        ({}, {"init_from": "x"}, "randomly initialised weights"),
        ({}, {"mup": MupConfig(base_head_dim=8)}, "without the base width"),
    ],
)
def test_what_mup_does_not_fit_is_refused(optim, model, cause):
    problems = Problems()
    check_model(Config(model=replace(WIDE, **model), optim=OptimConfig(**optim)), problems)
    assert [problem for problem in problems.found if cause in problem.cause]
