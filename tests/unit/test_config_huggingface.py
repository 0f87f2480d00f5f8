"""A model's shape from its folder: what is taken, what is ours to choose, what is refused."""

import json
import math

import pytest

from distllm.config.compose import compose, composition_of
from distllm.config.explain import explanation
from distllm.config.huggingface import read_config, with_imported, write_config
from distllm.config.problems import Problems
from distllm.config.resolve import DatasetFacts, resolve
from distllm.config.schema import Config
from distllm.config.schema_model import ModelConfig, RopeConfig
from distllm.config.shape import settle_shape
from distllm.errors import ConfigError, ConfigProblems
from distllm.export.load import shape_of

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
QWEN = {**LLAMA, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8}
MODERNBERT = {**LLAMA, "model_type": "modernbert"}
T5 = {
    "model_type": "t5",
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
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


def test_an_adapter_without_its_model_is_named(tmp_path):
    said = {"base_model_name_or_path": "someone/a-model"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    for read in (settled, shape_of):
        with pytest.raises(ConfigError, match=r"its base model someone/a-model is not a folder") as caught:
            read(tmp_path)
        assert "base_model_name_or_path" in str(caught.value)


@pytest.mark.slow
def test_an_adapter_stands_for_its_model_and_contradictions_are_named(folder, tmp_path):
    base, adapter = folder(LLAMA), tmp_path / "adapter"
    adapter.mkdir()
    said = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(said))
    place = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    header = json.dumps({place: {"dtype": "F32", "shape": [4, 1], "data_offsets": [0, 16]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(16)
    (adapter / "adapter_model.safetensors").write_bytes(content)
    assert settled(adapter).shape == settled(base).shape
    more = f"model.lora.init_from={adapter}"
    words = ["model=hf", f"model.init_from={base}", *TRAIN, more]
    composition = composition_of(words)
    told = explanation(composition, resolve(composition.config, starts_here=False))
    assert (told["model.hidden_size"]["value"], told["model.lora.rank"]["value"]) == (64, 4)
    assert told["model.lora.rank"]["detail"] == f"{adapter}, which model.lora.init_from names"
    lora = settled(base, more).config.model.lora
    assert (lora.rank, lora.alpha, lora.targets) == (4, 6.0, ("q_proj",))
    for words, wrong in (
        ([more, "model.lora.rank=8"], "rank is 8, but the adapter"),
        ([f"model.init_from={adapter}", more], "would be applied twice"),
        (["model.init_from=null", more], "model.init_from is not set"),
    ):
        with pytest.raises(ConfigProblems, match=wrong):
            settled(base, *words)


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
        ({**LLAMA, "quantization_config": {"quant_method": "fp8"}}, "quantised weights"),
        ({**LLAMA, "partial_rotary_factor": 0.5}, r"a share of 0\.5"),
        ({**LLAMA, "rope_parameters": {"full_attention": {"rope_type": "default"}}}, "kinds of layers"),
        ({**LLAMA, "rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, "truncate=false"),
        ({**QWEN, "layer_types": ["chunked_attention"] * 3}, "layer_types="),
        ({**QWEN, "layer_types": ["full_attention"] * 2}, "not 3 of sliding_attention, full_attention"),
        ({**MODERNBERT, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling="),
        ({**MODERNBERT, "classifier_bias": True}, "classifier_bias=True"),
        ({**T5, "feed_forward_proj": "double-gelu"}, "feed_forward_proj='double-gelu'"),
        ({**T5, "dense_act_fn": "relu"}, "dense_act_fn='relu'"),
        ({**T5, "is_encoder_decoder": False}, "is_encoder_decoder=False"),
    ],
)
def test_what_the_block_cannot_do_is_refused(folder, content, cause):
    with pytest.raises(ConfigProblems, match=cause):
        settled(folder({"vocab_size": 1000, **content}))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"hidden_size": None}, "of a llama lacks hidden_size"),
        ({"num_hidden_layers": None}, "lacks num_hidden_layers"),
        ({"num_attention_heads": "four", "head_dim": 16}, "is invalid: num_heads='four'"),
        ({"num_attention_heads": "four"}, "is invalid: unsupported operand"),
        ({"num_attention_heads": 0}, "is invalid"),
        ({"num_hidden_layers": -1}, "num_layers=-1: below the least allowed value 1"),
        ({"rms_norm_eps": "x"}, "norm_eps='x'"),
        ({"rope_scaling": {"type": "linear"}}, "lacks factor"),
        ({"rope_scaling": "linear"}, "is invalid"),
    ],
)
def test_a_configuration_that_is_not_whole_is_named(folder, change, cause):
    content = {**LLAMA, **change}
    place = folder({key: value for key, value in content.items() if value is not None})
    with pytest.raises(ConfigProblems, match=cause):
        settled(place)
    with pytest.raises(ConfigError, match=cause):
        shape_of(place)


def test_heads_that_do_not_divide_are_named_also_outside_of_training(folder):
    with pytest.raises(ConfigProblems, match="num_heads 4 is not divisible by num_kv_heads 3"):
        shape_of(folder({**LLAMA, "num_key_value_heads": 3}))


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
    "yarn without its factor": (
        {"type": "yarn", "original_max_position_embeddings": 32},
        RopeConfig("yarn", 4.0, 32),
    ),
    "DeepSeek's yarn": (
        {"type": "yarn", "factor": 10.0, "mscale": 2.0, "mscale_all_dim": 1.0},
        RopeConfig("yarn", 10.0, 128, attention_factor=(1 + 0.2 * math.log(10)) / (1 + 0.1 * math.log(10))),
    ),
}


@pytest.mark.parametrize(("scaling", "rope"), OLD_ROPES.values(), ids=OLD_ROPES.keys())
def test_older_fields_of_rotary_positions_are_read(scaling, rope):
    found = read_config({**LLAMA, "rope_scaling": scaling})
    assert (found.rope, found.rope_theta) == (rope, 500.0)


def test_of_two_fields_of_rotary_positions_the_older_counts_as_in_transformers():
    both = {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 7.0}}
    found = read_config({**LLAMA, **both})
    assert (found.rope, found.rope_theta) == (RopeConfig("linear", 2.0), 500.0)
    stretched = {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 7.0}}
    found = read_config({**LLAMA, **stretched, "original_max_position_embeddings": 48})
    assert (found.rope, found.rope_theta) == (RopeConfig("yarn", 2.0, 48), 7.0)


UNSAID = {
    "alibi": ({"positions": "alibi"}, "transformers has no architecture for"),
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
