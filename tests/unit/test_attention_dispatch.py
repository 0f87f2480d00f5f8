"""Which attention a layer gets: by feature, machine and order; what nothing computes is refused by name."""

import pytest
import torch

from distllm.config.attention import (
    BACKENDS,
    ORDERS,
    PACKAGES,
    WORDS,
    AttentionSpec,
    Machine,
    attention_specs,
    choose,
    derivation,
)
from distllm.config.compose import compose
from distllm.config.resolve import resolve
from distllm.errors import ConfigError, MissingDependency
from distllm.ops import attention, backend
from distllm.ops.attention import CAUSAL, Pattern, attend, plan_attention

EVERYTHING = frozenset(PACKAGES)
HOPPER, AMPERE = Machine((9, 0), EVERYTHING), Machine((8, 0), EVERYTHING)
BLACKWELL, GEFORCE = Machine((10, 0), EVERYTHING), Machine((12, 0), frozenset({"triton"}))
BARE = Machine((9, 0))
CPU = torch.device("cpu")
BASE = ["model.hidden_size=64", "model.num_heads=4", "train.max_steps=10", "train.tokens_per_step=4096"]


def resolved(*overrides):
    return resolve(compose([*BASE, *overrides]), starts_here=False)


def ask(*features, device="cuda", dtype="bf16", head_dim=128):
    return AttentionSpec(device, dtype, head_dim, frozenset(features))


@pytest.fixture(autouse=True)
def stock_choice():
    yield
    backend.use_kernels("torch", CPU)
    backend._state[0] = backend._State("torch", backend._DEFAULT, Machine(), frozenset(backend._DEFAULT))


@pytest.mark.parametrize(
    ("asked", "machine", "order", "name"),
    [
        (ask("documents"), BLACKWELL, "torch", "fa4"),
        (ask("documents", head_dim=192), HOPPER, "torch", "fa3"),
        (ask("documents"), Machine((9, 0), frozenset({"flash-attn-3"})), "torch", "fa3"),
        (ask("documents", "window", "grouped"), AMPERE, "torch", "flash"),
        (ask(), BARE, "torch", "cudnn"),
        (ask(head_dim=256), BARE, "torch", "flash"),
        (ask("documents", dtype="fp32"), HOPPER, "torch", "sdpa"),
        (ask("softcap", "documents"), HOPPER, "torch", "sdpa"),
        (ask("softcap", "documents"), HOPPER, "auto", "triton"),
        (ask("softcap", "documents"), BARE, "auto", "sdpa"),
        (ask("bias", "documents"), HOPPER, "auto", "flex"),
        (ask("bias", "documents"), BARE, "auto", "sdpa"),
        (ask("alibi", "documents"), HOPPER, "auto", "triton"),
        (ask("alibi", "documents", head_dim=80), HOPPER, "auto", "sdpa"),
        (ask("alibi", "documents", head_dim=16), HOPPER, "auto", "flex"),
        (ask("alibi", "documents"), HOPPER, "triton", "triton"),
        (ask("alibi", "documents", device="cpu"), Machine(), "torch", "documents"),
        (ask("documents", head_dim=192), GEFORCE, "auto", "triton"),
        (ask("documents", "cross"), HOPPER, "auto", "sdpa"),
        (ask("documents", "cross"), HOPPER, "triton", "source"),
        (ask("documents"), AMPERE, "triton", "triton"),
        (ask("cross"), HOPPER, "auto", "fa4"),
        (ask("cross", "window"), HOPPER, "auto", "flex"),
        (ask("sinks", "alibi", "lse"), HOPPER, "auto", "triton"),
        (ask("documents", "softcap", device="cpu", dtype="fp64"), Machine(), "torch", "documents"),
        (ask("window", device="cpu"), Machine(None, EVERYTHING), "auto", "sdpa"),
    ],
)
def test_the_first_that_computes_what_is_asked_is_taken(asked, machine, order, name):
    choice = choose(asked, machine, ORDERS[order])
    assert choice.name == name
    assert BACKENDS[name].what in choice.reason
    for passed in ORDERS[order][: ORDERS[order].index(name)]:
        assert f"{passed} (" in choice.reason


@pytest.mark.parametrize(
    ("asked", "order", "says"),
    [
        (ask("bias"), "triton", r"triton \(does not support a bias by distance"),
        (ask(head_dim=80), "triton", r"triton \(has no head size 80\)"),
        (ask(dtype="fp64"), "triton", r"triton \(does not compute in fp64\)"),
        (ask("window", "cross"), "triton", "counts a window over another sequence from its end"),
        (
            ask("sinks"),
            "torch",
            "fa4 .does not support attention sinks.*sdpa .does not support attention sinks",
        ),
        (
            ask("sinks", "alibi", device="cpu"),
            "auto",
            "no attention computes ALiBi slopes .*attention sinks in",
        ),
    ],
)
def test_what_no_backend_computes_is_refused_by_name(asked, order, says):
    with pytest.raises(ConfigError, match=says):
        choose(asked, HOPPER, ORDERS[order])


@pytest.mark.parametrize(
    ("machine", "name", "device", "says"),
    [
        (BARE, "fa4", "cuda", "needs the package flash-attn-4"),
        (AMPERE, "fa3", "cuda", "is not made for compute capability 8.0"),
        (HOPPER, "triton", "cpu", "runs on cuda"),
        (Machine(None, EVERYTHING), "cudnn", "cuda", "needs a GPU"),
        (Machine(None, frozenset({"triton"}), interpreted=True), "triton", "cpu", None),
        (Machine(), "documents", "cpu", None),
    ],
)
def test_what_a_machine_lacks_is_named(machine, name, device, says):
    assert BACKENDS[name].absent(machine, device) == says


def test_every_feature_has_a_backend_and_a_word():
    assert {feature for one in BACKENDS.values() for feature in one.features} == set(WORDS)
    assert {name for order in ORDERS.values() for name in order} == set(BACKENDS)


def test_a_model_asks_for_what_its_layers_have():
    kinds = attention_specs(
        resolved(
            "model.num_kv_heads=2", "model.sliding_window=64", "model.window_pattern=GLL",
            "model.attention_softcap=30", "model.positions=alibi",
        ).config
    )  # fmt: skip
    always = {"documents", "grouped", "softcap", "alibi"}
    assert {kind: set(asked.features) for kind, asked in kinds.items()} == {
        "global": always,
        "sliding": always | {"window"},
    }


def test_explain_names_the_attention_before_the_machine_is_known():
    assert resolved().derivations["attention.global"].value == "documents"
    names, formula = derivation(ask("documents", "softcap"), ORDERS["auto"])
    assert names == "triton > flex > sdpa"
    assert "fa4 does not support soft-capped scores" in formula


@pytest.fixture
def fake_gpu(monkeypatch):
    """A process on a Hopper with everything installed, whose kernels say which they are."""
    taken, activated = [], []
    monkeypatch.setattr(backend, "machine_of", lambda device: HOPPER)
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", activated.append)
    named = {"packed_rows": "packed", "flex_attend": "flex", "_triton": "triton", "_masked": "masked"}
    for function, name in named.items():
        monkeypatch.setattr(attention, function, lambda q, *_, _name=name, **__: taken.append(_name) or q)
    return taken, activated


def test_what_is_chosen_is_what_runs(fake_gpu):
    taken, activated = fake_gpu
    cuda, segments = torch.device("cuda"), torch.tensor([[0, 0, 1, 1]])
    q = torch.randn(1, 4, 2, 128, dtype=torch.bfloat16)

    def run(kernels, asked, pattern=CAUSAL, **told):
        chosen = backend.use_kernels(kernels, cuda, [asked]).attention[asked].name
        plan = plan_attention(segments.to(CPU), cuda)
        attend(q, q, q, plan, pattern, **told)
        return chosen, plan

    chosen, plan = run("torch", ask("documents", "window"), Pattern(window=2))
    assert (chosen, taken.pop(), activated) == ("fa4", "packed", ["FA4"])
    assert plan.borders_E.tolist() == [0, 2, 4]
    assert plan.visible_B1TS is None
    chosen, plan = run("auto", ask("documents", "softcap"), Pattern(softcap=5.0))
    assert (chosen, taken.pop()) == ("triton", "triton")
    chosen, plan = run("auto", ask("documents", "alibi"), slopes_H=torch.zeros(2))
    assert (chosen, taken.pop()) == ("triton", "triton")
    chosen, plan = run("auto", ask("documents", "bias"), bias_HR=torch.zeros(2, 7))
    assert (chosen, taken.pop()) == ("flex", "flex")
    assert plan.visible_B1TS.shape == (1, 1, 4, 4)
    chosen, _ = run("torch", ask("documents", "softcap"), Pattern(softcap=5.0))
    assert (chosen, taken.pop()) == ("sdpa", "masked")
    assert activated == ["FA4"]


def test_triton_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(backend, "machine_of", lambda device: BARE)
    with pytest.raises(MissingDependency, match="needs the package triton"):
        backend.use_kernels("triton", torch.device("cuda"))
    monkeypatch.setattr(backend, "machine_of", lambda device: Machine(None, EVERYTHING))
    with pytest.raises(ConfigError, match="needs a CUDA device, and this rank has cpu"):
        backend.use_kernels("triton", CPU)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
def test_flex_attention_computes_what_the_mask_computes(causal):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 40, 4, 16), torch.randn(2, 40, 2, 16), torch.randn(2, 40, 2, 16)
    bias = torch.randn(4, 79)
    plan = plan_attention(torch.arange(40).expand(2, -1) // 13, torch.device("meta"))
    pattern = Pattern(causal, window=7, softcap=4.0)
    expected = attend(q, k, v, plan, Pattern(causal, window=7), bias)
    found = attention.flex_attend(
        q, k, v, plan.visible_B1TS, bias, causal=causal, window=7, softcap=0.0, scale=None
    )
    torch.testing.assert_close(found, expected)
    capped = attend(q, k, v, plan, pattern)
    found = attention.flex_attend(
        q, k, v, plan.visible_B1TS, None, causal=causal, window=7, softcap=4.0, scale=None
    )
    torch.testing.assert_close(found, capped)


@pytest.mark.parametrize(
    ("causal", "window", "expected"),
    [(True, 0, (-1, 0)), (True, 5, (4, 0)), (False, 0, (-1, -1)), (False, 5, (4, 4))],
)
def test_packed_rows_are_handed_to_flash_attention_with_their_borders(monkeypatch, causal, window, expected):
    from torch.nn.attention import varlen

    from distllm.ops.gpu_attention import packed_rows

    seen = {}

    def record(q, k, v, queries, keys, longest, other, **named):
        seen.update(named, borders=queries.tolist(), longest=longest, shapes=(q.shape, k.shape))
        return q

    monkeypatch.setattr(varlen, "varlen_attn", record)
    q, k = torch.randn(2, 4, 2, 8), torch.randn(2, 4, 1, 8)
    assert torch.equal(packed_rows(q, k, k, None, causal, window, None), q)
    assert seen["window_size"] == expected
    assert (seen["borders"], seen["longest"], seen["enable_gqa"]) == ([0, 4, 8], 4, True)
    assert seen["shapes"] == ((8, 2, 8), (8, 1, 8))
