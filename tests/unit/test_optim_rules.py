"""Update rules against their papers: one step by hand, and what each remembers."""

import pytest
import torch
from torch import nn

from distllm.config.checks import check_run
from distllm.config.problems import Problems
from distllm.config.schema import Config, EngineConfig, TrainConfig
from distllm.config.schema_model import ModelConfig
from distllm.config.schema_optim import OptimConfig
from distllm.config.shape import settle_shape
from distllm.dist.engine import MOMENTS, all_slots, allocate_moments, slots_of, state_names
from distllm.models.init import build_model
from distllm.optim.optimizers import OPTIMIZERS, build_optimizer
from distllm.optim.rules import Adafactor, Lion, MuonWithAdamW, orthogonalized

NAMES = ("adam", "adamw", "sgd", "lion", "adafactor", "muon")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.LayerNorm(10), nn.Linear(10, 3))


def one_step(optimizer_name, weight, gradient, **settings):
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, weight)
    optimizer = build_optimizer(model, OptimConfig(name=optimizer_name, **settings))
    model.weight.grad = torch.full((1, 1), gradient).double()
    optimizer.step()
    return model, optimizer


def test_sgd_adds_momentum():
    model, optimizer = one_step("sgd", 2.0, 3.0, lr=0.1, beta1=0.5, weight_decay=0.0)
    assert model.weight.item() == pytest.approx(1.7)
    optimizer.step()
    assert model.weight.item() == pytest.approx(1.7 - 0.1 * (0.5 * 3 + 3))


def test_lion_takes_the_sign_and_decays_by_the_rate():
    model, optimizer = one_step("lion", 2.0, 3.0, lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.5)
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.05) - 0.1)
    assert optimizer.state[model.weight]["exp_avg"].item() == pytest.approx(0.03)
    model.weight.grad.fill_(-0.2)  # 0.9 x 0.03 - 0.1 x 0.2 is still positive
    before = model.weight.item()
    optimizer.step()
    assert model.weight.item() == pytest.approx(before * 0.95 - 0.1)


def test_adam_counts_decay_as_gradient_and_adamw_does_not():
    coupled, _ = one_step("adam", 2.0, 0.0, lr=0.1, weight_decay=0.5)
    decoupled, _ = one_step("adamw", 2.0, 0.0, lr=0.1, weight_decay=0.5)
    assert coupled.weight.item() == pytest.approx(1.9)  # a first step is the rate, whatever the gradient
    assert decoupled.weight.item() == pytest.approx(2.0 * (1 - 0.05))


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5)])
def test_an_orthogonalized_matrix_has_singular_values_about_one(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    values = torch.linalg.svdvals(orthogonalized(matrix))
    assert values.min() > 0.6
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert (orthogonalized(matrix) * (left @ right)).sum() > 0.8 * min(shape)


def test_muon_updates_matrices_by_their_shape_and_the_rest_as_adamw_does():
    plain, mixed = net(), net()
    settings = {"lr": 0.01, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95}
    optimizers = [
        build_optimizer(model, OptimConfig(name=name, **settings))
        for model, name in ((plain, "adamw"), (mixed, "muon"))
    ]
    for _ in range(3):
        for model, optimizer in zip((plain, mixed), optimizers, strict=True):
            torch.manual_seed(1)
            optimizer.zero_grad()
            model(torch.randn(4, 6)).square().sum().backward()
            for parameter in model.parameters():  # the same gradients for both
                parameter.grad = torch.sin(torch.arange(parameter.numel(), dtype=torch.float32)).view_as(
                    parameter
                )
            optimizer.step()
    torch.testing.assert_close(plain[0].bias, mixed[0].bias, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(plain[1].weight, mixed[1].weight, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(plain[0].weight, mixed[0].weight, atol=1e-4)
    before = net()[0].weight
    rms = (mixed[0].weight - before).square().mean().sqrt() / 3
    assert 0.1 * 0.01 < rms < 0.5 * 0.01  # about 0.2 of the rate, as AdamW's updates have


def test_embeddings_and_the_output_are_no_matrices_for_muon():
    model = nn.ModuleDict({"embed_tokens": nn.Embedding(5, 4), "q_proj": nn.Linear(4, 4, bias=False)})
    optimizer = build_optimizer(model, OptimConfig(name="muon"))
    slots = all_slots(optimizer, dict(model.named_parameters()))
    assert list(slots["embed_tokens.weight"]) == ["exp_avg", "exp_avg_sq"]
    assert list(slots["q_proj.weight"]) == ["momentum_buffer"]


def test_muon_agrees_with_torch():
    """But for the precision: torch's iterates in bf16."""
    found = []
    for make in (
        lambda weights: MuonWithAdamW(
            [{"params": weights, "weight_decay": 0.1, "rows": (12,)}],
            lr=0.01, momentum=0.95, betas=(0.9, 0.95), eps=1e-8,
        ),
        lambda weights: torch.optim.Muon(
            weights, lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
    ):  # fmt: skip
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(12, 20))
        optimizer = make([weight])
        for _ in range(4):
            weight.grad = torch.randn(12, 20)
            optimizer.step()
        found.append(weight.detach())
    torch.testing.assert_close(*found, rtol=0, atol=4e-4)


def muon_of(family="decoder", head="masked_lm", **options):
    config = ModelConfig(
        family=family,
        hidden_size=16,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=24,
        **options,
    )
    model = build_model(settle_shape(config, 64, 8), seed=0, head=head)
    optimizer = build_optimizer(model, OptimConfig(name="muon", lr=0.1, weight_decay=0.0))
    rows = {id(weight): group["rows"] for group in optimizer.param_groups for weight in group["params"]}
    return model, optimizer, {name: rows[id(weight)] for name, weight in model.named_parameters()}


@pytest.mark.parametrize(
    ("options", "weight", "rows"),
    [
        ({}, "decoder.layers.0.self_attn.qkv_proj.weight", (16, 8, 8)),
        ({}, "decoder.layers.0.mlp.gate_up_proj.weight", (24, 24)),
        ({"num_experts": 3}, "decoder.layers.0.mlp.gate_up_proj", (24, 24)),
        ({"num_experts": 3}, "decoder.layers.0.mlp.down_proj", (16,)),
        ({"family": "encoder_decoder"}, "decoder.layers.0.cross_attn.kv_proj.weight", (8, 8)),
        ({"family": "encoder_decoder", "positions": "relative"}, "decoder.relative.weight", None),
        ({"family": "encoder", "head": "span"}, "head.weight", None),
        ({"tie_embeddings": False}, "lm_head.weight", None),
        ({}, "decoder.norm.weight", None),
    ],
)
def test_muon_knows_the_matrices_that_are_stored_as_one(options, weight, rows):
    assert muon_of(**options)[2][weight] == rows


def test_each_matrix_of_a_stack_is_updated_on_its_own():
    model, optimizer, _ = muon_of(num_experts=3)
    weights = dict(model.named_parameters())
    names = ("decoder.layers.0.self_attn.qkv_proj.weight", "decoder.layers.0.mlp.gate_up_proj")
    before = {name: weights[name].detach().clone() for name in names}
    for name in names:
        weights[name].grad = torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    (q, k, v), experts = before[names[0]].split([16, 8, 8]), before[names[1]]
    for start, part in ((0, q), (16, k), (24, v)):
        moved = weights[names[0]][start : start + len(part)] - part
        gradient = weights[names[0]].grad[start : start + len(part)]
        expected = -0.1 * 0.2 * 16**0.5 * orthogonalized(gradient)
        torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)
    for expert in range(3):
        moved = weights[names[1]][expert, 24:] - experts[expert, 24:]
        expected = -0.1 * 0.2 * 24**0.5 * orthogonalized(weights[names[1]].grad[expert, 24:])
        torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)


SLOTS = {
    "adam": {"exp_avg", "exp_avg_sq"},
    "adamw": {"exp_avg", "exp_avg_sq"},
    "sgd": {"momentum_buffer"},
    "lion": {"exp_avg"},
    "adafactor": {"row_var", "col_var", "variance"},
    "muon": {"momentum_buffer", "exp_avg", "exp_avg_sq"},
}


@pytest.mark.parametrize("name", NAMES)
def test_state_allocated_before_the_first_step_changes_nothing(name):
    models = net(), net()
    optimizers = [build_optimizer(model, OptimConfig(name=name, lr=0.01)) for model in models]
    for parameter in models[0].parameters():
        allocate_moments(optimizers[0], parameter)
    for _ in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(torch.ones(2, 6)).square().sum().backward()
            optimizer.step()
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_slots_are_exactly_the_tensors_that_a_step_leaves_behind(name):
    model = net()
    optimizer = build_optimizer(model, OptimConfig(name=name))
    slots = all_slots(optimizer, dict(model.named_parameters()))
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    for parameter_name, parameter in model.named_parameters():
        held = {key: value.shape for key, value in optimizer.state[parameter].items() if key != "step"}
        assert held == slots[parameter_name]
    assert {slot for held in slots.values() for slot in held} == SLOTS[name]
    names = [logical for logical, _, _ in state_names(slots)]
    assert len(names) == len(set(names))
    assert names[:6] == [f"model/{parameter}" for parameter, _ in model.named_parameters()]


def test_momentum_of_zero_is_not_remembered():
    model = net()
    optimizer = build_optimizer(model, OptimConfig(name="sgd", beta1=0.0))
    assert slots_of(optimizer, model[0].weight) == {}
    assert dict.fromkeys(MOMENTS, model[0].weight.shape) == slots_of(
        torch.optim.AdamW(model.parameters()), model[0].weight
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_learns(name):
    model = net()
    rate = {"sgd": 0.02, "adafactor": 0.05, "lion": 0.003}.get(name, 0.01)
    optimizer = build_optimizer(model, OptimConfig(name=name, lr=rate, weight_decay=0.0))
    torch.manual_seed(2)
    inputs = torch.randn(32, 6)
    wanted = inputs[:, :3] * 2
    losses = []
    for _ in range(60):
        loss = (model(inputs) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.names()))
@pytest.mark.parametrize("stage", [0, 2])
def test_rules_that_need_whole_matrices_are_refused_where_partitions_are_flat(name, stage):
    config = Config(
        optim=OptimConfig(name=name), engine=EngineConfig(zero_stage=stage), train=TrainConfig(max_steps=1)
    )
    problems = Problems()
    check_run(config, problems, world_size=1, dataset_tokens=None)
    causes = [problem.cause for problem in problems.found if "fp32 copy" not in problem.cause]
    refused = stage > 0 and name in ("adafactor", "muon")
    assert [f"optim.name={name} needs whole matrices" in cause for cause in causes] == [True] * refused


def test_classes_fit_their_names():
    kinds = {name: type(build_optimizer(net(), OptimConfig(name=name))) for name in NAMES}
    assert (kinds["lion"], kinds["adafactor"], kinds["muon"]) == (Lion, Adafactor, MuonWithAdamW)
    assert issubclass(kinds["sgd"], torch.optim.SGD)
