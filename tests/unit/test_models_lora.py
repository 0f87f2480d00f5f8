"""Adapters: what learns, what it computes, and that peft computes the same from the exported folder."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from distllm.config.huggingface import model_type_of
from distllm.config.peft import read_adapter, with_settled_lora
from distllm.config.schema_lora import PROJECTIONS, LoraConfig
from distllm.config.schema_model import ModelConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.config.shape import settle_shape
from distllm.data.tokenizer import Tokenizer
from distllm.errors import CheckpointError, ConfigError, IntegrityError
from distllm.export.adapter import export_adapter
from distllm.export.base import adapt
from distllm.export.hf import export_hf
from distllm.export.load import load_model, stored_head
from distllm.export.verify import largest_difference
from distllm.models.init import bare_model, build_model
from distllm.models.lora import adapters_of, add_adapters, learned_beside, merge_adapters

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
GPT2 = {
    "norm": "layer", "norm_bias": True, "positions": "learned", "activation": "gelu_tanh", "gated": False,
    "attention_bias": True, "attention_out_bias": True, "mlp_bias": True,
}  # fmt: skip
BERT = {
    **GPT2, "family": "encoder", "norm_place": "post", "norm_eps": 1e-12, "embed_norm": True,
    "token_types": 2, "activation": "gelu",
}  # fmt: skip
T5 = {
    "family": "encoder_decoder", "positions": "relative", "attention_scale": 1.0, "activation": "relu",
    "gated": False, "norm_eps": 1e-6,
}  # fmt: skip
CASES = {
    "llama": ({"num_kv_heads": 2}, ("q_proj", "v_proj", "gate_proj"), "masked_lm"),
    "gpt2": (GPT2, ("q_proj", "v_proj", "down_proj"), "masked_lm"),
    "bert": (BERT, ALL, "span"),
    "t5": (T5, ("q_proj", "k_proj", "o_proj"), "masked_lm"),
}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the cat sat on the mat"] * 4, TokenizerConfig(vocab_size=262))


def shape_of(options, **more):
    return settle_shape(ModelConfig(hidden_size=32, num_layers=2, num_heads=4, **options, **more), 262, 24)


def disturbed(model):
    """Give every weight that learns some other value, as training does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


def logits(model):
    tokens = torch.arange(12).view(1, 12)
    places = torch.arange(12).view(1, 12)
    if model.shape.family == "encoder_decoder":
        return model(tokens, places, None, tokens, places)
    return model(tokens, places)


@pytest.mark.parametrize("case", CASES)
def test_adapters_begin_with_nothing_and_merge_to_what_they_compute(case):
    options, targets, head = CASES[case]
    shape, lora = shape_of(options), LoraConfig(rank=3, alpha=5.0, targets=targets)
    model = build_model(shape, seed=0, head=head).eval()
    before = logits(model)
    names = [name for name, _ in model.named_parameters()]
    add_adapters(model, shape, lora, seed=7)
    assert torch.equal(logits(model), before)
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    beside = set(learned_beside(model))
    assert beside == ({"head.weight", "head.bias"} if head == "span" else set())
    assert not (learning - beside) & set(names)
    count = sum(weight.numel() for name, weight in model.named_parameters() if name in learning - beside)
    assert count == shape.adapter_params(lora)
    computed = logits(disturbed(model))
    assert (computed - before).abs().max() > 1e-3
    merge_adapters(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert torch.allclose(logits(model), computed, atol=1e-5)


def test_only_adapters_get_gradients_and_dropout_is_of_training():
    shape = shape_of({})
    model = build_model(shape, seed=0)
    add_adapters(model, shape, LoraConfig(rank=2, dropout=0.5), seed=0)
    disturbed(model)
    tokens = torch.arange(12).view(1, 12)
    torch.manual_seed(0)
    first = model(tokens, tokens, None, tokens)
    first.backward()
    with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters() if "lora" in name}
    assert first != model(tokens, tokens, None, tokens)
    model.eval()
    assert torch.equal(logits(model), logits(model))


def test_a_model_without_the_projection_is_refused():
    shape = shape_of(GPT2)
    with pytest.raises(ValueError, match="gate_proj"):
        add_adapters(build_model(shape, 0), shape, LoraConfig(rank=1, targets=("gate_proj",)), 0)


@pytest.mark.parametrize("case", CASES)
def test_peft_computes_our_logits(tmp_path, tokenizer, case):
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    options, targets, head = CASES[case]
    shape = shape_of(options, vocab_size=262)
    lora = LoraConfig(rank=3, alpha=5.0, targets=targets)
    base = build_model(shape, seed=0, head=head)
    export_hf(base.state_dict(), shape, tokenizer, tmp_path / "hf", {}, head=head)
    add_adapters(base, shape, lora, seed=7)
    model = disturbed(base).eval()
    export_adapter(
        adapters_of(model), learned_beside(model), shape, lora, str(tmp_path / "hf"), tmp_path / "adapter",
        {}, head=head,
    )  # fmt: skip
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    name = json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"][0]
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "hf")
    adapted = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "adapter")).eval()
    tokens = torch.randint(262, (2, 16), generator=torch.Generator().manual_seed(0))
    assert said["peft_type"] == "LORA"
    assert largest_difference(model, adapted, tokens) < 1e-5
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    own = peft.get_peft_model_state_dict(adapted)
    assert saved.keys() == own.keys()
    folder = tmp_path / "adapter"
    for again in (load_model(folder, head=stored_head(folder)), going_on(tmp_path, head)):
        assert largest_difference(again, adapted, tokens) < 1e-5
    assert settled(tmp_path).targets == tuple(name for name in PROJECTIONS if name in targets)


def settled(folder):
    """Return the keys of an adapter that a run goes on with."""
    asked = LoraConfig(init_from=str(folder / "adapter"))
    return with_settled_lora(asked, model_type_of(folder / "hf"))


def going_on(folder, head="masked_lm"):
    """Build a model whose adapters begin with those of a folder."""
    model = bare_model(load_model(folder / "adapter", head=head).shape, head=head)
    adapt(model, ModelConfig(init_from=str(folder / "hf"), lora=settled(folder)), 0)
    return model.eval()


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("llama", {"target_modules": ["q_proj", "down_proj"], "use_rslora": True}),
        ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
        (
            "llama",
            {"target_modules": "all-linear", "alpha_pattern": {"q_proj": 7}, "rank_pattern": {"up_proj": 2}},
        ),
        ("gpt2", {"target_modules": ["c_fc"], "layers_to_transform": [1], "fan_in_fan_out": True}),
    ],
)
def test_an_adapter_of_peft_is_a_model_and_goes_on_learning(tmp_path, tokenizer, case, said):
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    shape = shape_of(CASES[case][0], vocab_size=262)
    export_hf(build_model(shape, seed=0).state_dict(), shape, tokenizer, tmp_path / "hf", {})
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5, **said)
    theirs = disturbed(peft.get_peft_model(base, config)).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    tokens = torch.randint(262, (2, 16), generator=torch.Generator().manual_seed(0))
    assert largest_difference(load_model(tmp_path / "adapter"), theirs, tokens) < 1e-5
    uneven = {"alpha_pattern": "rank_pattern", "layers_to_transform": "it has none of transformer.h.0"}
    wrong = next((words for key, words in uneven.items() if key in said), None)
    if wrong is None:
        assert largest_difference(going_on(tmp_path), theirs, tokens) < 1e-5
    else:
        with pytest.raises((ConfigError, CheckpointError), match=wrong):
            going_on(tmp_path)


@pytest.mark.parametrize(
    "said",
    [{"use_dora": True}, {"bias": "all"}, {"init_lora_weights": "pissa_niter_4"}, {"peft_type": "LOHA"},
     {"trainable_token_indices": [1]}, {"a_key_of_tomorrow": 1}],
    ids=lambda said: next(iter(said)),
)  # fmt: skip
def test_what_an_adapter_computes_otherwise_is_refused_by_name(tmp_path, said):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, **said}))
    with pytest.raises(ConfigError, match=next(iter(said))) as caught:
        read_adapter(tmp_path)
    assert "merge_and_unload" in str(caught.value)


def test_a_damaged_description_of_an_adapter_is_named(tmp_path):
    for said in ({"lora_alpha": "much"}, {"alpha_pattern": ["q_proj"]}, {"alpha_pattern": {"(": 1}}):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, **said}))
        (tmp_path / "adapter_model.safetensors").touch()
        with pytest.raises(ConfigError, match="has no alpha"):
            read_adapter(tmp_path).scale("q_proj", 3)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for said in (
        {},
        {"rank": 2, "alpha": None, "targets": ["q_proj"]},
        {"rank": 2, "alpha": 2, "targets": 3},
    ):
        (tmp_path / "distllm.json").write_text(json.dumps({"lora": said}))
        with pytest.raises(IntegrityError, match="does not say what its adapters are"):
            with_settled_lora(LoraConfig(init_from=str(tmp_path)), "llama")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (torch.tensor(1.0), "lora_embedding_A has no place"),
        (torch.tensor(6e4, dtype=torch.half), "lora_embedding_A has no place"),  # its sum is not finite
        (torch.tensor(math.nan), "lora_embedding_A holds values that are no finite numbers"),
    ],
)
def test_a_weight_of_an_adapter_without_a_place_or_a_value_is_refused(tmp_path, tokenizer, value, why):
    shape = shape_of({}, vocab_size=262)
    export_hf(build_model(shape, seed=0).state_dict(), shape, tokenizer, tmp_path / "hf", {})
    said = {"peft_type": "LORA", "r": 3, "lora_alpha": 3, "base_model_name_or_path": str(tmp_path / "hf")}
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    name = "base_model.model.model.embed_tokens.lora_embedding_A"
    save_file({name: value.repeat(3, 262)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=why):
        load_model(tmp_path)


def test_what_adapters_belong_to_must_stay(tmp_path, tokenizer):
    shape = shape_of({}, vocab_size=262)
    for number in (0, 1):
        weights = build_model(shape, seed=number).state_dict()
        export_hf(weights, shape, tokenizer, tmp_path / f"hf{number}", {})
    config = ModelConfig(init_from=str(tmp_path / "hf0"), lora=LoraConfig(rank=2))
    found = adapt(bare_model(shape), config, 0)
    assert adapt(bare_model(shape), config, 0, found) == found
    other = ModelConfig(init_from=str(tmp_path / "hf1"), lora=LoraConfig(rank=2))
    with pytest.raises(CheckpointError, match="belong to other weights"):
        adapt(bare_model(shape), other, 0, found)
    gone = ModelConfig(init_from=str(tmp_path / "nothing"), lora=LoraConfig(rank=2))
    with pytest.raises(CheckpointError, match="are gone"):
        adapt(bare_model(shape), gone, 0)
