"""What preferences are compared with: the folder that training began with, computing as the model does."""

from types import SimpleNamespace

import pytest
import torch

from distllm.config.schema import Config, TaskConfig
from distllm.config.schema_model import ModelConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.config.shape import settle_shape
from distllm.data.tokenizer import Tokenizer
from distllm.export.hf import export_hf
from distllm.models.init import build_model
from distllm.train.reference import reference_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_computes_in_the_numbers_of_the_model_so_that_nothing_has_gained_at_first(
    tmp_path, dtype
):
    tokenizer = Tokenizer.train(["the cat sat on the mat"] * 4, TokenizerConfig(vocab_size=270))
    model = ModelConfig(hidden_size=32, num_layers=1, num_heads=4, init_from=str(tmp_path / "hf"))
    shape = settle_shape(model, tokenizer.vocab_size, 48)
    begun = build_model(shape, 3)
    export_hf(begun.state_dict(), shape, tokenizer, tmp_path / "hf", {})
    resolved = SimpleNamespace(config=Config(task=TaskConfig(name="dpo"), model=model), shape=shape)
    reference = reference_model(resolved, dtype)
    ids, places = torch.tensor([tokenizer.encode("the cat sat")]), torch.arange(3)[None]
    ids = ids[:, :3]
    assert torch.equal(reference(ids, places), begun.to(dtype)(ids, places))
    assert {weight.dtype for weight in reference.parameters()} == {dtype}
    other = SimpleNamespace(config=Config(model=model), shape=shape)
    assert reference_model(other) is None
