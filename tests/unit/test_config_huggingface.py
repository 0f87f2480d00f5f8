"""A model's shape from its folder: what is taken, what is ours to choose, what is refused."""

import json

import pytest

from distllm.config.compose import compose
from distllm.config.huggingface import read_config, with_imported, write_config
from distllm.config.problems import Problems
from distllm.config.resolve import DatasetFacts, resolve
from distllm.config.schema import Config
from distllm.config.schema_model import ModelConfig, RopeConfig
from distllm.config.shape import settle_shape
from distllm.errors import ConfigError, ConfigProblems

LLAMA = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500.0,
    "tie_word_embeddings": True,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 1000,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
}
TRAIN = ["train.max_steps=2", "train.tokens_per_step=256", "data.seq_len=64"]


@pytest.fixture
def folder(tmp_path):
    def write(content):
        (tmp_path / "config.json").write_text(json.dumps(content))
        return tmp_path

    return write


def settled(folder, *overrides, dataset=None):
    words = ["model=hf", f"model.init_from={folder}", *TRAIN, *overrides]
    return resolve(compose(words), dataset=dataset, starts_here=False)


def test_the_shape_is_that_of_the_folder(folder):
    found = settled(folder(LLAMA))
    shape = found.shape
    assert (shape.hidden_size, shape.num_layers, shape.num_kv_heads) == (64, 3, 2)
    assert (shape.vocab_size, shape.max_seq_len, shape.rope_theta) == (1000, 128, 500.0)
    assert found.derivations["vocab_size"].formula == "model.vocab_size"


def test_what_is_of_training_stays_ours(folder):
    found = settled(folder(LLAMA), "model.dropout=0.2", "model.init_std=0.5")
    assert (found.shape.dropout, found.shape.init_std) == (0.2, 0.5)


def test_a_key_that_agrees_may_be_given_and_one_that_does_not_is_named(folder):
    place = folder(LLAMA)
    assert settled(place, "model.num_layers=3").shape.num_layers == 3
    with pytest.raises(ConfigProblems) as caught:
        settled(place, "model.num_layers=5", "model.norm_eps=1e-3")
    causes = [problem.cause for problem in caught.value.problems]
    assert any("model.num_layers is 5" in cause and "has 3" in cause for cause in causes)
    assert any("model.norm_eps is 0.001" in cause for cause in causes)
    assert all("model=hf" in problem.remedy for problem in caught.value.problems)


def test_a_preset_beside_a_folder_is_a_contradiction(folder):
    with pytest.raises(ConfigProblems, match=r"model\.hidden_size is 192"):
        resolve(compose(["model=llama-tiny", f"model.init_from={folder(LLAMA)}", *TRAIN]), starts_here=False)


def test_a_folder_without_a_configuration_is_named(tmp_path):
    with pytest.raises(ConfigProblems, match=r"holds no config\.json"):
        settled(tmp_path / "nowhere")


def test_a_run_goes_on_when_its_folder_is_gone(folder):
    place = folder(LLAMA)
    kept = settled(place).config
    (place / "config.json").unlink()
    problems = Problems()
    assert with_imported(kept, problems) == kept
    assert not problems.found


def test_without_a_folder_nothing_changes():
    problems = Problems()
    assert with_imported(Config(), problems) == Config()
    assert not problems.found


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(folder):
    place = folder(LLAMA)
    assert settled(place, dataset=DatasetFacts(1000, 10**6, 10**4, "x")).shape.vocab_size == 1000
    with pytest.raises(ConfigProblems, match="1001 ids, the model 1000"):
        settled(place, dataset=DatasetFacts(1001, 10**6, 10**4, "x"))


def test_samples_longer_than_learned_positions_are_refused(folder):
    with pytest.raises(ConfigProblems, match="samples of 256 tokens, but the model has 128"):
        settled(folder(GPT2), "data.seq_len=256")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ({"model_type": "mamba"}, "models of type 'mamba'"),
        ({**LLAMA, "hidden_act": "tanh"}, "activation 'tanh'"),
        ({**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type 'dynamic'"),
        ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({**GPT2, "add_cross_attention": True}, "add_cross_attention=True"),
    ],
)
def test_what_the_block_cannot_do_is_refused(folder, content, cause):
    with pytest.raises(ConfigProblems, match=cause):
        settled(folder({"vocab_size": 1000, **content}))


OLD_ROPES = {
    "none": (None, RopeConfig()),
    "linear": ({"type": "linear", "factor": 2.0}, RopeConfig("linear", 2.0)),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        RopeConfig("llama3", 8.0, 64, 1.0, 4.0),
    ),
    "yarn without its context": (
        {"type": "yarn", "factor": 4.0},
        RopeConfig("yarn", 4.0, 128),
    ),
}


@pytest.mark.parametrize(("scaling", "rope"), OLD_ROPES.values(), ids=OLD_ROPES.keys())
def test_older_fields_of_rotary_positions_are_read(scaling, rope):
    found = read_config({**LLAMA, "rope_scaling": scaling})
    assert (found.rope, found.rope_theta) == (rope, 500.0)


UNSAID = {
    "alibi": ({"positions": "alibi"}, "no architecture of transformers"),
    "sines": ({"family": "encoder_decoder", "positions": "sinusoidal"}, "no architecture"),
    "caps": ({"logit_softcap": 3.0}, "logit_softcap"),
    "scores": ({"attention_softcap": 3.0, "attention_scale": 0.5}, "attention_softcap, attention_scale"),
    "a plain Llama": ({"gated": False}, "gated"),
    "alternating Mistral": ({"sliding_window": 4, "window_pattern": "LG"}, "windows"),
    "a scaled embedding": ({"scale_embedding": True}, "scale_embedding"),
    "a biased BERT of no bias": (
        {"family": "encoder", "positions": "learned", "norm": "layer", "embed_norm": True},
        "norm_bias",
    ),
}


@pytest.mark.parametrize(("options", "cause"), UNSAID.values(), ids=UNSAID.keys())
def test_what_transformers_cannot_say_is_refused_and_never_dropped(options, cause):
    shape = settle_shape(ModelConfig(num_layers=2, **options), 64, 32)
    with pytest.raises(ConfigError, match=cause):
        write_config(shape)


def test_dropout_does_not_keep_a_model_from_being_exported():
    name, content = write_config(settle_shape(ModelConfig(dropout=0.1, layer_drop=0.2), 64, 32))
    assert name == "llama"
    assert content["max_position_embeddings"] == 32
