import json

import pytest
import torch
from generation import generate

from distllm.config.schema import ModelConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.config.shape import settle_shape
from distllm.data.tokenizer import Tokenizer
from distllm.errors import CheckpointError, ConfigError, IntegrityError, MissingDependency
from distllm.export.hf import export_hf
from distllm.export.verify import verify_export
from distllm.models.init import build_model

FACTS = {"step": 7, "valid_loss": 1.5, "dataset": "abc", "config": {"name": "tiny-run", "seed": 3}}


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["the cat sat on the mat, and the dog ran off"] * 4
    return Tokenizer.train(texts, TokenizerConfig(vocab_size=262))


def make_model(tokenizer, tie_embeddings):
    config = ModelConfig(
        hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, tie_embeddings=tie_embeddings, init_std=0.1
    )
    return build_model(settle_shape(config, tokenizer.vocab_size, seq_len=24), seed=0)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def exported(request, tokenizer, tmp_path_factory):
    model = make_model(tokenizer, request.param)
    out = tmp_path_factory.mktemp("export") / "hf"
    export_hf(model.state_dict(), model.shape, tokenizer, out, FACTS)
    return model, out


def weights(out):
    from safetensors.torch import load_file

    return {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_transformers_computes_the_same_logits(exported):
    model, out = exported
    assert verify_export(out, model) <= 1e-5


def test_verification_sees_a_wrong_weight(exported, tmp_path, tokenizer):
    model, _ = exported
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    state["decoder.layers.1.self_attn.qkv_proj.weight"][-1] += 0.1
    export_hf(state, model.shape, tokenizer, tmp_path / "hf", FACTS)
    with pytest.raises(IntegrityError, match="differ"):
        verify_export(tmp_path / "hf", model)


def test_verification_without_transformers_names_the_extra(exported, monkeypatch):
    model, out = exported
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingDependency, match="transformers"):
        verify_export(out, model)


def test_greedy_tokens_are_those_of_transformers(exported, tokenizer):
    from transformers import AutoModelForCausalLM

    model, out = exported
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    for text in ("the cat", "dog", ""):
        prompt = [tokenizer.eot_id, *tokenizer.encode(text)]
        expected = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12)[0].tolist()
        new = expected[len(prompt) :]
        new = new[: new.index(tokenizer.eot_id)] if tokenizer.eot_id in new else new
        options = {"vocab_size": tokenizer.vocab_size, "eot_id": tokenizer.eot_id, "max_tokens": 12}
        assert generate(model, prompt, **options) == new


def test_tokenizer_is_the_one_of_training(exported, tokenizer):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(exported[1])
    text = "the cat  sät on\nthe mat"
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert theirs.decode(theirs(text)["input_ids"]) == text
    assert theirs.bos_token_id == theirs.eos_token_id == tokenizer.eot_id
    assert theirs.model_max_length == 24


def test_ids_that_pad_the_vocabulary_are_never_generated(exported, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    model, _ = exported
    first, last = tokenizer.vocab_size, model.shape.vocab_size
    assert first < last, "the test needs padding"
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    table = "embed_tokens.weight" if model.shape.tie_embeddings else "lm_head.weight"
    state[table][first:] *= 100.0
    export_hf(state, model.shape, tokenizer, tmp_path / "hf", {})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    ids = theirs.generate(torch.tensor([[tokenizer.eot_id]]), do_sample=False, max_new_tokens=16)[0]
    assert int(ids.max()) < first


def test_many_shards_hold_what_one_does(exported, tokenizer, tmp_path):
    model, out = exported
    pairs = iter(model.state_dict().items())
    export_hf(pairs, model.shape, tokenizer, tmp_path / "hf", FACTS, shard_bytes=20_000)
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert verify_export(tmp_path / "hf", model) <= 1e-5
    whole, parts = weights(out), weights(tmp_path / "hf")
    assert whole.keys() == parts.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())


def test_configuration_is_the_shape(exported):
    from transformers import AutoConfig

    model, out = exported
    config = AutoConfig.from_pretrained(out)
    assert config.rope_parameters["rope_theta"] == model.shape.rope_theta
    assert config.tie_word_embeddings == model.shape.tie_embeddings
    assert config.max_position_embeddings == model.shape.max_seq_len
    assert config.dtype == torch.float32


def test_card_and_facts_tell_the_run(exported):
    out = exported[1]
    card = (out / "README.md").read_text()
    assert "# tiny-run" in card
    assert "| valid_loss | 1.5 |" in card
    assert '"seed": 3' in card
    assert json.loads((out / "distllm.json").read_text())["facts"] == FACTS


def test_an_earlier_export_is_replaced_whole(tokenizer, tmp_path):
    model = make_model(tokenizer, tie_embeddings=True)
    out = tmp_path / "hf"
    export_hf(model.state_dict(), model.shape, tokenizer, out, {}, shard_bytes=20_000)
    export_hf(model.state_dict(), model.shape, tokenizer, out, {})
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert [path.name for path in out.glob("*.safetensors*")] == ["model.safetensors"]


def test_a_folder_of_something_else_is_left_alone(tokenizer, tmp_path):
    model = make_model(tokenizer, tie_embeddings=True)
    (tmp_path / "thesis.txt").write_text("do not lose me")
    with pytest.raises(ConfigError, match="not written by this command"):
        export_hf(model.state_dict(), model.shape, tokenizer, tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("fault", ["missing", "unknown", "wrong size"])
def test_weights_that_do_not_fit_leave_nothing_behind(tokenizer, tmp_path, fault):
    model = make_model(tokenizer, tie_embeddings=True)
    state = dict(model.state_dict())
    if fault == "missing":
        del state["decoder.norm.weight"]
    elif fault == "unknown":
        state["decoder.layers.9.mlp.down_proj.weight"] = torch.zeros(2)
    else:
        state["decoder.norm.weight"] = torch.zeros(3)
    with pytest.raises(CheckpointError):
        export_hf(state, model.shape, tokenizer, tmp_path / "hf", {})
    assert list(tmp_path.iterdir()) == []
