"""A mixture of experts against its definition, and what keeps its tokens spread."""

import pytest
import torch
import torch.nn.functional as F

from distllm.config.checks_model import check_model
from distllm.config.problems import Problems
from distllm.config.schema import Config, EngineConfig
from distllm.config.schema_model import ModelConfig
from distllm.config.shape import settle_shape
from distllm.models.init import build_model
from distllm.models.moe import MixtureOfExperts, balanced

VOCAB, LENGTH, EXPERTS = 64, 16, 4


def make(**options):
    sizes = {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_size": 24,
        "num_experts": EXPERTS,
        "init_std": 0.2,
    }
    return build_model(settle_shape(ModelConfig(**{**sizes, **options}), VOCAB, LENGTH), seed=0)


def batch():
    tokens = torch.randint(VOCAB, (2, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    places = torch.arange(LENGTH).expand(2, LENGTH)
    return tokens[:, :-1], places, None, tokens[:, 1:].clone()


@pytest.mark.parametrize("chosen", [1, 2, EXPERTS])
def test_output_is_that_of_the_definition(chosen):
    """Every expert answers every token; what is not chosen is weighted by nothing."""
    layer = make(experts_per_token=chosen).decoder.layers[0].mlp
    assert isinstance(layer, MixtureOfExperts)
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        likely = layer.router(x).softmax(-1)
        threshold = likely.sort(-1, descending=True).values[..., chosen - 1 : chosen]
        weights = likely.where(likely >= threshold, 0.0)
        weights = weights / weights.sum(-1, keepdim=True)
        gate, up = torch.einsum("btc,eic->btei", x, layer.gate_up_proj).chunk(2, -1)
        answers = torch.einsum("btei,eci->btec", F.silu(gate) * up, layer.down_proj)
        expected = (weights[..., None] * answers).sum(2)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_a_token_does_not_feel_how_many_others_its_expert_has():
    layer = make(experts_per_token=1, hidden_size=256, intermediate_size=512).eval().decoder.layers[0].mlp
    torch.manual_seed(0)
    alone = torch.randn(1, 40, 256)
    crowded = alone[:, :1].expand_as(alone)  # all of them go to one expert
    chosen = layer.router(alone)[0].argmax(-1)
    assert 1 <= int((chosen == chosen[0]).sum()) < 40
    assert torch.equal(layer(alone)[0, 0], layer(crowded)[0, 0])


def test_imbalance_is_one_if_tokens_are_spread_and_the_number_of_experts_if_not():
    layer = make(experts_per_token=1).decoder.layers[0].mlp
    x = torch.eye(32)[:EXPERTS].repeat(8, 1)[None] * 50.0
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[:, :EXPERTS] = torch.eye(EXPERTS)
        layer(x)
        assert float(layer.imbalance) == pytest.approx(1.0)
        layer(x[:, :1].expand(-1, 8, -1))
        assert float(layer.imbalance) == pytest.approx(EXPERTS)


def test_the_loss_of_balance_counts_for_each_target_in_training_only():
    model, inputs = make(balance_loss=0.5), batch()
    inputs[3][0, :4] = -100
    trained = model(*inputs)
    layers = [module.imbalance for module in model.modules() if isinstance(module, MixtureOfExperts)]
    plain = model.eval()(*inputs)
    count = 2 * LENGTH - 4
    torch.testing.assert_close(trained, plain + 0.5 * count * torch.stack(layers).mean())
    free = make(balance_loss=0.0)
    torch.testing.assert_close(free(*inputs), plain)
    assert balanced(plain, free, free.shape, inputs[3], -100) is plain


def test_balance_spreads_tokens():
    def spread(balance_loss):
        model = make(balance_loss=balance_loss, experts_per_token=1)
        with torch.no_grad():
            for layer in model.decoder.layers:
                layer.mlp.router.weight[0] += 0.3  # the first expert begins as everybody's favourite
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(30):
            optimizer.zero_grad()
            model(*batch()).backward()
            optimizer.step()
        model(*batch())
        return max(float(layer.mlp.imbalance.detach()) for layer in model.decoder.layers)

    assert spread(1.0) < spread(0.0)


def test_experts_are_initialised_as_the_matrices_they_replace():
    model = make(hidden_size=64, init_std=0.05)
    layer = model.decoder.layers[0].mlp
    assert layer.gate_up_proj.std().item() == pytest.approx(0.05, rel=0.05)
    assert layer.down_proj.std().item() == pytest.approx(0.05 / 2, rel=0.05)
    assert not torch.equal(layer.down_proj[0], layer.down_proj[1])


def test_compiling_experts_is_refused():
    problems = Problems()
    check_model(Config(model=ModelConfig(num_experts=4), engine=EngineConfig(compile=True)), problems)
    (problem,) = problems.found
    assert "cannot be compiled" in problem.cause
    assert problem.remedy == "engine.compile=false"


@pytest.mark.parametrize(
    "options",
    [
        {"family": "encoder"},
        {"family": "encoder_decoder", "positions": "relative"},
    ],
)
def test_every_family_may_have_experts(options):
    model, (tokens, places, _, wanted) = make(**options), batch()
    source = (tokens, places, None) if model.shape.family == "encoder_decoder" else ()
    model(*source, tokens, places, None, wanted).backward()
    routers = [weight for name, weight in model.named_parameters() if "router" in name]
    assert routers
    assert all(weight.grad.abs().sum() > 0 for weight in routers)
    assert sum(weight.numel() for weight in model.parameters()) == model.shape.num_params
