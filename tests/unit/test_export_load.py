"""Weights out of a folder: bounded memory, exact errors, heads that may be missing."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from distllm.config.schema_model import ModelConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.config.shape import settle_shape
from distllm.data.tokenizer import Tokenizer
from distllm.errors import CheckpointError, ConfigError, IntegrityError
from distllm.export.hf import export_hf, is_known_to_transformers
from distllm.export.load import load_model, load_weights, shape_of, stored_head
from distllm.models.init import bare_model, build_model

BERT = {
    "family": "encoder",
    "norm": "layer",
    "norm_bias": True,
    "norm_place": "post",
    "norm_eps": 1e-12,
    "embed_norm": True,
    "token_types": 2,
    "positions": "learned",
    "activation": "gelu",
    "gated": False,
    "attention_bias": True,
    "attention_out_bias": True,
    "mlp_bias": True,
}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the cat sat on the mat"] * 4, TokenizerConfig(vocab_size=262))


def exported(place, tokenizer, head="masked_lm", shard_bytes=2**30, **options):
    config = ModelConfig(hidden_size=32, num_layers=2, num_heads=4, **options)
    model = build_model(settle_shape(config, tokenizer.vocab_size, 24), seed=0, head=head)
    export_hf(model.state_dict(), model.shape, tokenizer, place, {}, shard_bytes, head=head)
    return model


def same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("shard_bytes", [2**30, 4096], ids=["one file", "many files"])
@pytest.mark.parametrize("options", [{}, BERT], ids=["llama", "bert"])
def test_what_was_written_is_read(tmp_path, tokenizer, options, shard_bytes):
    model = exported(tmp_path / "hf", tokenizer, shard_bytes=shard_bytes, **options)
    found = load_model(tmp_path / "hf")
    assert same(model, found)
    assert not found.training
    assert (len(list((tmp_path / "hf").glob("*.safetensors"))) > 1) == (shard_bytes == 4096)


@pytest.mark.parametrize("head", ["span", "embedding"])
def test_heads_of_encoders_are_written_and_read(tmp_path, tokenizer, head):
    from distllm.export.verify import verify_export

    model = exported(tmp_path / "hf", tokenizer, head, **BERT)
    assert same(model, load_model(tmp_path / "hf", head=head))
    assert verify_export(tmp_path / "hf", model) <= 1e-5


def test_a_head_without_a_class_is_refused(tmp_path, tokenizer):
    options = {"family": "encoder", "norm": "layer", "embed_norm": True, "activation": "gelu"}
    with pytest.raises(ConfigError, match="no modernbert for the head span"):
        exported(tmp_path / "hf", tokenizer, "span", **options)
    assert not (tmp_path / "hf").exists()
    shape = exported(tmp_path / "hf", tokenizer, "masked_lm", **options).shape
    assert is_known_to_transformers(shape, "masked_lm")
    assert not is_known_to_transformers(shape, "span")


def test_a_missing_head_stays_as_it_was_drawn_and_is_named(tmp_path, tokenizer):
    body = exported(tmp_path / "hf", tokenizer, "embedding", **BERT)
    model = build_model(body.shape, seed=1, head="span")
    drawn = model.head.weight.detach().clone()
    assert load_weights(model, body.shape, tmp_path / "hf") == ["head.weight", "head.bias"]
    assert torch.equal(model.head.weight, drawn)
    assert torch.equal(model.embed_tokens.weight, body.embed_tokens.weight)
    with pytest.raises(CheckpointError, match=r"no weights for head\.weight"):
        load_model(tmp_path / "hf", head="span")


def test_a_head_that_an_architecture_has_no_name_for_is_new(tmp_path, tokenizer):
    options = {"family": "encoder", "norm": "layer", "embed_norm": True, "activation": "gelu"}
    body = exported(tmp_path / "hf", tokenizer, "masked_lm", **options)
    model = build_model(body.shape, seed=1, head="span")
    assert load_weights(model, body.shape, tmp_path / "hf") == ["head.weight", "head.bias"]
    assert torch.equal(model.embed_tokens.weight, body.embed_tokens.weight)


def test_one_tensor_is_read_at_a_time(tmp_path, tokenizer, monkeypatch):
    from distllm.export import load

    model = exported(tmp_path / "hf", tokenizer, num_kv_heads=2)
    alive, most = [0], [0]
    read = load._Files.read

    def counted(self, name):
        tensor = read(self, name)
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        return tensor

    copy = load._copy

    def copied(*arguments):
        copy(*arguments)
        alive[0] = 0

    monkeypatch.setattr(load._Files, "read", counted)
    monkeypatch.setattr(load, "_copy", copied)
    assert same(model, load_model(tmp_path / "hf"))
    assert most[0] == 3  # the parts of one joined matrix


def test_half_precision_is_widened(tmp_path, tokenizer):
    model = exported(tmp_path / "hf", tokenizer)
    file = tmp_path / "hf" / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    found = load_model(tmp_path / "hf")
    assert found.embed_tokens.weight.dtype == torch.float32
    assert torch.equal(found.embed_tokens.weight, model.embed_tokens.weight.bfloat16().float())


def rewrite(place, change):
    file = place / "model.safetensors"
    save_file(change(load_file(file)), file)


DAMAGES = {
    "missing": lambda tensors: {name: w for name, w in tensors.items() if name != "model.norm.weight"},
    "size": lambda tensors: {**tensors, "model.norm.weight": torch.ones(3)},
    "nan": lambda tensors: {**tensors, "model.norm.weight": torch.full((32,), torch.nan)},
    "quantised": lambda tensors: {**tensors, "model.norm.weight": torch.ones(32).to(torch.float8_e4m3fn)},
    "biased": lambda tensors: {**tensors, "model.layers.0.self_attn.o_proj.bias": torch.ones(32)},
    "deeper": lambda tensors: {**tensors, "model.layers.2.input_layernorm.weight": torch.ones(32)},
}


def damage(place, how):
    file = place / "model.safetensors"
    if how in DAMAGES:
        rewrite(place, DAMAGES[how])
    elif how == "torn":
        file.write_bytes(file.read_bytes()[:100])
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "pickled":
        file.rename(place / "pytorch_model.bin")
    else:
        (place / "config.json").unlink()


@pytest.mark.parametrize(
    ("how", "error", "cause"),
    [
        ("missing", CheckpointError, r"no tensor model\.norm\.weight"),
        ("size", CheckpointError, r"of size \(3,\), not \(32,\)"),
        ("nan", CheckpointError, r"model\.norm\.weight holds values that are no finite numbers"),
        ("quantised", CheckpointError, "is stored as float8_e4m3fn: quantised weights"),
        ("biased", CheckpointError, r"1 weights of its layers have no place .*self_attn\.o_proj\.bias"),
        ("deeper", CheckpointError, r"such as model\.layers\.2"),
        ("torn", CheckpointError, "cannot be read"),
        ("cut", CheckpointError, "cannot be read"),
        ("pickled", CheckpointError, "no safetensors files"),
        ("nameless", ConfigError, r"no config\.json"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, tokenizer, how, error, cause):
    exported(tmp_path / "hf", tokenizer)
    damage(tmp_path / "hf", how)
    with pytest.raises(error, match=cause) as caught:
        load_model(tmp_path / "hf")
    assert caught.value.remedy


T5 = {"family": "encoder_decoder", "positions": "relative", "attention_scale": 1.0}
GPT2 = {**BERT, "family": "decoder", "norm_place": "pre", "embed_norm": False, "token_types": 0}
RENAMED = {
    "BERT's first norms": (
        BERT,
        lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"),
    ),
    "T5's embedding by a stack": (
        T5,
        lambda name: "decoder.embed_tokens.weight" if name == "shared.weight" else name,
    ),
    "an embedding by the output": (
        {},
        lambda name: "lm_head.weight" if name == "model.embed_tokens.weight" else name,
    ),
    "GPT-2 by its first names": (GPT2, lambda name: name.removeprefix("transformer.")),
}


@pytest.mark.parametrize(("options", "renamed"), RENAMED.values(), ids=RENAMED.keys())
def test_names_that_transformers_knows_too_are_read(tmp_path, tokenizer, options, renamed):
    model = exported(tmp_path / "hf", tokenizer, **options)
    before = load_file(tmp_path / "hf" / "model.safetensors").keys()
    rewrite(tmp_path / "hf", lambda tensors: {renamed(name): w for name, w in tensors.items()})
    assert load_file(tmp_path / "hf" / "model.safetensors").keys() != before
    assert same(model, load_model(tmp_path / "hf"))


def test_tables_and_leftovers_in_layers_are_no_weights(tmp_path, tokenizer):
    model = exported(tmp_path / "hf", tokenizer, **GPT2)
    table = {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4)}
    rewrite(tmp_path / "hf", lambda tensors: {**tensors, **table})
    assert same(model, load_model(tmp_path / "hf"))


@pytest.mark.parametrize("options", [{}, T5], ids=["llama", "t5"])
def test_weights_say_whether_an_embedding_is_shared(tmp_path, tokenizer, options):
    """As in transformers, which writes of T5 1.1 that it is tied, and keeps both of its weights."""
    name = "shared.weight" if options else "model.embed_tokens.weight"
    model = exported(tmp_path / "hf", tokenizer, **options)
    shared = model.embed_tokens.weight.detach().clone()
    rewrite(tmp_path / "hf", lambda tensors: {**tensors, "lm_head.weight": tensors[name].clone()})
    assert shape_of(tmp_path / "hf").tie_embeddings
    assert same(model, load_model(tmp_path / "hf"))
    rewrite(tmp_path / "hf", lambda tensors: {**tensors, "lm_head.weight": tensors[name] + 1.0})
    found = load_model(tmp_path / "hf")
    assert not found.shape.tie_embeddings
    assert torch.equal(found.embed_tokens.weight, shared)
    assert torch.equal(found.lm_head.weight, shared + 1.0)


def test_an_output_that_only_t5_leaves_out_is_its_embedding(tmp_path, tokenizer):
    for options, ties in ((T5, True), ({}, False)):
        exported(tmp_path / "hf", tokenizer, **options)
        file = tmp_path / "hf" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "tie_word_embeddings": False}))
        assert shape_of(tmp_path / "hf").tie_embeddings is ties


def test_files_beside_those_of_the_model_are_not_read(tmp_path, tokenizer):
    model = exported(tmp_path / "hf", tokenizer, shard_bytes=4096)
    wrong = {"model.norm.weight": torch.zeros(32), "lm_head.weight": torch.zeros(263, 32)}
    save_file(wrong, tmp_path / "hf" / "variant.safetensors")
    assert same(model, load_model(tmp_path / "hf"))
    index = tmp_path / "hf" / "model.safetensors.index.json"
    first = min(set(json.loads(index.read_text())["weight_map"].values()))
    (tmp_path / "hf" / first).unlink()
    with pytest.raises(CheckpointError, match=f"cannot be read: .*{first}"):
        load_model(tmp_path / "hf")
    for damaged in ({}, {"weight_map": []}, {"weight_map": {"lm_head.weight": 1}}):
        index.write_text(json.dumps(damaged))
        with pytest.raises(IntegrityError, match="does not say which file holds which weights"):
            load_model(tmp_path / "hf")


def test_a_model_that_memory_does_not_hold_is_refused(tmp_path, tokenizer, monkeypatch):
    exported(tmp_path / "hf", tokenizer)
    monkeypatch.setattr("distllm.export.load.available_memory", lambda: 4096)
    with pytest.raises(ConfigError, match=r"in fp32, and 4\.0 KiB of memory are free"):
        load_model(tmp_path / "hf")


def test_names_without_their_base_are_read_too(tmp_path, tokenizer):
    """Folders of bare models, such as those of sentence encoders, leave out ``bert.``."""
    model = exported(tmp_path / "hf", tokenizer, "span", **BERT)
    file = tmp_path / "hf" / "model.safetensors"
    save_file({name.removeprefix("bert."): tensor for name, tensor in load_file(file).items()}, file)
    assert same(model, load_model(tmp_path / "hf", head="span"))


def test_the_shape_of_a_folder_is_the_models(tmp_path, tokenizer):
    model = exported(tmp_path / "hf", tokenizer, num_kv_heads=2, sliding_window=5)
    shape = shape_of(tmp_path / "hf")
    assert shape == model.shape
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "mistral"
    assert bare_model(shape).state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("head", "options", "loads"),
    [
        ("masked_lm", {}, "AutoModelForCausalLM.from_pretrained("),
        ("masked_lm", BERT, "BertForMaskedLM.from_pretrained("),
        ("embedding", BERT, "SentenceTransformer("),
    ],
)
def test_the_card_names_the_class_to_load(tmp_path, tokenizer, head, options, loads):
    exported(tmp_path / "hf", tokenizer, head, **options)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert f"model = {loads}" in card
    assert ("text-generation" in card) == (not options)


@pytest.mark.parametrize(
    ("names", "head"),
    [
        (["BertForQuestionAnswering"], "span"),
        (["BertModel"], "embedding"),
        (["ModernBertModel"], "embedding"),
        (["BertForMaskedLM"], "masked_lm"),
        (["LlamaForCausalLM"], "masked_lm"),
        ([], "masked_lm"),
        (3, "masked_lm"),
    ],
)
def test_the_head_of_a_folder_is_told_by_its_class(tmp_path, names, head):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": names}))
    assert stored_head(tmp_path) == head
