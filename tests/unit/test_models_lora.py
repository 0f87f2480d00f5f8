"""Adapters: what learns, what it computes, and that peft computes the same from the exported folder."""

import json

import pytest
import torch
from safetensors.torch import load_file

from distllm.config.schema_lora import LoraConfig
from distllm.config.schema_model import ModelConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.config.shape import settle_shape
from distllm.data.tokenizer import Tokenizer
from distllm.errors import CheckpointError
from distllm.export.adapter import export_adapter
from distllm.export.base import adapt
from distllm.export.hf import export_hf
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
