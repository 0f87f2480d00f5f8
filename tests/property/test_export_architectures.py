"""Random models of transformers are read, compute the same, and are written back bit for bit."""

import tempfile
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from distllm.config.huggingface import read_config
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.tokenizer import Tokenizer
from distllm.errors import ConfigError
from distllm.export.hf import export_hf
from distllm.export.load import load_model
from distllm.export.verify import largest_difference, verify_export

TOKENIZER = Tokenizer.train(["a cat sat on a mat"] * 4, TokenizerConfig(vocab_size=262))
WORDS, LENGTH = 263, 24
booleans, ids = st.booleans(), dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
activations = st.sampled_from(["silu", "gelu", "gelu_new", "relu"])
ropes = st.sampled_from(
    [
        {"rope_type": "default", "rope_theta": 500.0},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        {
            "rope_type": "llama3",
            "rope_theta": 1e3,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        {
            "rope_type": "yarn",
            "rope_theta": 1e3,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ]
)

pytestmark = pytest.mark.slow


@st.composite
def common(draw):
    heads = draw(st.sampled_from([2, 4]))
    return {
        "vocab_size": WORDS,
        "hidden_size": heads * draw(st.sampled_from([4, 6])),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(5, 30)),
        "max_position_embeddings": draw(st.integers(LENGTH, 40)),
        **ids,
    }


@st.composite
def descendant(draw, config, **options):
    sizes = draw(common())
    sizes["num_key_value_heads"] = draw(st.sampled_from([1, 2, sizes["num_attention_heads"]]))
    drawn = {name: draw(strategy) for name, strategy in options.items()}
    return config(
        **sizes,
        **drawn,
        hidden_act=draw(activations),
        rms_norm_eps=draw(st.sampled_from([1e-5, 1e-6])),
        rope_parameters=draw(ropes),
        tie_word_embeddings=draw(booleans),
    )


@st.composite
def mixtral(draw):
    """Theirs multiplies by groups, which wants rows of a multiple of 16 bytes."""
    found = draw(descendant(transformers.MixtralConfig, num_experts_per_tok=st.integers(1, 2)))
    found.intermediate_size = 4 * draw(st.integers(1, 6))
    found.num_local_experts = draw(st.integers(2, 4))
    return found


@st.composite
def qwen(draw, config):
    found = draw(descendant(config, head_dim=st.sampled_from([6, 10])))
    layers = found.num_hidden_layers
    windows = {
        "use_sliding_window": draw(booleans),
        "sliding_window": draw(st.integers(2, 9)),
        "max_window_layers": draw(st.integers(0, layers)),
    }
    plain = {key: value for key, value in found.to_dict().items() if key not in ("layer_types", *windows)}
    return config(**plain, **windows)


@st.composite
def gpt2(draw):
    heads = draw(st.sampled_from([2, 3]))
    return transformers.GPT2Config(
        vocab_size=WORDS,
        n_embd=heads * 6,
        n_layer=draw(st.integers(1, 3)),
        n_head=heads,
        n_inner=draw(st.sampled_from([None, 20])),
        n_positions=draw(st.integers(LENGTH, 40)),
        activation_function=draw(activations),
        tie_word_embeddings=draw(booleans),
        **ids,
    )


@st.composite
def bert(draw):
    return transformers.BertConfig(
        **draw(common()), hidden_act=draw(activations), type_vocab_size=draw(st.integers(1, 3))
    )


@st.composite
def modernbert(draw):
    name, biased = draw(activations), draw(booleans)
    return transformers.ModernBertConfig(
        **draw(common()),
        hidden_activation=name,
        classifier_activation=name,
        local_attention=draw(st.sampled_from([4, 8])),
        attention_bias=draw(booleans),
        mlp_bias=biased,
        classifier_bias=biased,
        cls_token_id=0,
        sep_token_id=0,
        global_attn_every_n_layers=draw(st.integers(1, 3)),
    )


@st.composite
def t5(draw):
    return transformers.T5Config(
        vocab_size=WORDS,
        d_model=draw(st.sampled_from([12, 16])),
        d_kv=draw(st.integers(3, 8)),
        d_ff=draw(st.integers(5, 30)),
        num_layers=draw(st.integers(1, 2)),
        num_decoder_layers=draw(st.integers(1, 3)),
        num_heads=draw(st.integers(1, 4)),
        relative_attention_num_buckets=draw(st.sampled_from([8, 32])),
        relative_attention_max_distance=draw(st.sampled_from([20, 128])),
        feed_forward_proj=draw(st.sampled_from(["relu", "gated-gelu", "gated-silu"])),
        tie_word_embeddings=draw(booleans),
        decoder_start_token_id=0,
        eos_token_id=0,
    )


DRAWN = {
    "gpt2": (gpt2(), "GPT2LMHeadModel"),
    "llama": (
        descendant(
            transformers.LlamaConfig,
            attention_bias=booleans,
            mlp_bias=booleans,
            head_dim=st.sampled_from([4, 10]),
        ),
        "LlamaForCausalLM",
    ),
    "mistral": (
        descendant(
            transformers.MistralConfig,
            sliding_window=st.sampled_from([None, 5]),
            head_dim=st.sampled_from([4, 10]),
        ),
        "MistralForCausalLM",
    ),
    "mixtral": (mixtral(), "MixtralForCausalLM"),
    "qwen2": (qwen(transformers.Qwen2Config), "Qwen2ForCausalLM"),
    "qwen3": (qwen(transformers.Qwen3Config), "Qwen3ForCausalLM"),
    "olmo2": (descendant(transformers.Olmo2Config), "Olmo2ForCausalLM"),
    "bert": (bert(), "BertForMaskedLM"),
    "modernbert": (modernbert(), "ModernBertForMaskedLM"),
    "t5": (t5(), "T5ForConditionalGeneration"),
}


def random_model(config, name):
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            scale = 1.0 if weight.ndim == 1 and key.endswith("weight") else 0.0
            weight.copy_(scale + 0.15 * torch.randn(weight.shape))
    return model


def tensors(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(("drawn", "name"), DRAWN.values(), ids=DRAWN.keys())
def test_there_and_back(drawn, name):
    @settings(
        max_examples=4,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        phases=[Phase.generate],
    )
    @given(config=drawn)
    def law(config):
        with tempfile.TemporaryDirectory() as place:
            theirs, first, second = random_model(config, name), Path(place, "first"), Path(place, "second")
            theirs.save_pretrained(first)
            mine = load_model(first)
            tokens = torch.randint(1, WORDS, (2, LENGTH), generator=torch.Generator().manual_seed(1))
            assert largest_difference(mine, theirs, tokens) <= 1e-5
            export_hf(mine.state_dict(), mine.shape, TOKENIZER, second, {})
            before, after = tensors(first), tensors(second)
            assert before.keys() == after.keys()
            assert all(torch.equal(before[key], after[key]) for key in before)
            assert verify_export(second, mine) <= 1e-5
            again = load_model(second)
            assert again.shape == mine.shape

    law()


@pytest.mark.parametrize("name", DRAWN)
def test_a_field_that_is_left_out_is_what_transformers_takes_it_to_be_or_missed(name):
    content = transformers.AutoConfig.for_model(name).to_dict()
    whole, missed = read_config(content), []
    for key in content:
        try:
            found = read_config({other: value for other, value in content.items() if other != key})
        except ConfigError:
            missed.append(key)
        else:
            assert found == whole, key
    assert len(missed) <= 10
