"""What a run's data can be measured with in place of its checkpoints, and what is refused."""

from types import SimpleNamespace

import pytest

from distllm.commands import evaluate
from distllm.config.schema import Config, DataConfig, TaskConfig
from distllm.config.schema_model import ModelConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.config.shape import settle_shape
from distllm.data.tokenizer import Tokenizer
from distllm.errors import CheckpointError, ConfigError
from distllm.export.hf import export_hf
from distllm.infer.load import load_folder
from distllm.models.init import build_model

TEXTS = {"own": "the cat sat on the mat", "other": "The quick brown fox's tail, isn't it?"}
ENCODER = {"family": "encoder", "norm": "layer", "embed_norm": True, "activation": "gelu"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    for name, text, options in (*((*item, {}) for item in TEXTS.items()), ("encoder", TEXTS["own"], ENCODER)):
        tokenizer = Tokenizer.train([text] * 4, TokenizerConfig(vocab_size=270))
        config = ModelConfig(hidden_size=32, num_layers=1, num_heads=4, **options)
        shape = settle_shape(config, tokenizer.vocab_size, 48)
        export_hf(build_model(shape, 0).state_dict(), shape, tokenizer, root / name, {})
    return root


def a_run(root, task="causal_lm", **model):
    model = ModelConfig(hidden_size=64, num_layers=2, num_heads=4, **model)
    config = Config(task=TaskConfig(name=task), data=DataConfig(out=str(root / "own")), model=model)
    return SimpleNamespace(config=config, shape=settle_shape(model, 270, 48))


def test_a_folder_of_another_size_is_loaded_as_it_is(root):
    trained = load_folder(root / "own", a_run(root))
    assert (trained.model.shape.hidden_size, trained.step) == (32, 0)
    assert not trained.model.training


def test_a_folder_from_elsewhere_begins_its_texts_as_it_was_trained(root, tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 272}
    theirs = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=3))
    theirs.save_pretrained(tmp_path / "t5")
    run = a_run(root, task="seq2seq", family="encoder_decoder")
    assert load_folder(tmp_path / "t5", run).begin == 3
    own = load_folder(root / "own", a_run(root))
    assert own.begin == own.tokenizer.eot_id


def test_a_folder_with_another_tokenizer_is_refused(root):
    with pytest.raises(ConfigError, match=r"does not fit the model in .*other: id .* in the dataset and"):
        load_folder(root / "other", a_run(root))


def test_a_folder_of_another_family_is_refused(root):
    with pytest.raises(ConfigError, match="family decoder, and the run is of encoder"):
        load_folder(root / "own", a_run(root, family="encoder"))


def test_a_folder_without_the_head_that_the_task_reads_is_refused(root):
    with pytest.raises(CheckpointError, match="no weights for head"):
        load_folder(root / "encoder", a_run(root, task="extractive_qa", family="encoder"))


@pytest.mark.parametrize("word", ["step=3", "weights=ema", "follow=true"])
def test_a_folder_and_a_checkpoint_are_not_both_measured(word):
    name = word.partition("=")[0]
    with pytest.raises(ConfigError, match=f"{name} chooses a checkpoint of the run"):
        evaluate.run(["run=any", "model=folder", word])
