"""An exported encoder of sentences gives in sentence-transformers the vectors that it gives here."""

import numpy as np
import pytest
import torch

from distllm.config.schema import ModelConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.config.shape import settle_shape
from distllm.data.tokenizer import Tokenizer
from distllm.export.hf import export_hf
from distllm.models.init import build_model
from distllm.serve.backend import Backend

TEXTS = ["the cat sat", "a dog", "the cat sat on the mat and the dog on the cat " * 9]


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence_transformers_gives_the_same_vectors(tmp_path, pooling):
    from sentence_transformers import SentenceTransformer

    tokenizer = Tokenizer.train(TEXTS * 4, TokenizerConfig(vocab_size=300))
    config = ModelConfig(
        family="encoder", hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48, norm="layer",
        embed_norm=True, activation="gelu", pooling=pooling, init_std=0.3,
    )  # fmt: skip
    shape = settle_shape(config, tokenizer.vocab_size, 24)
    model = build_model(shape, seed=2, head="embedding").eval()
    out = tmp_path / "hf"
    export_hf(model.state_dict(), shape, tokenizer, out, {}, head="embedding")
    theirs = SentenceTransformer(str(out), device="cpu")
    assert theirs.max_seq_length == 24
    assert len(tokenizer.encode(TEXTS[2])) > 24
    found = theirs.encode(TEXTS)
    short = np.array(Backend("e", model, tokenizer).embed(TEXTS[:2]))
    np.testing.assert_allclose(found[:2], short, atol=1e-5)
    cut = tokenizer.enclosed(tokenizer.encode(TEXTS[2])[:22])
    with torch.no_grad():
        (long,) = model(torch.from_numpy(cut)[None], torch.arange(24)[None])
    np.testing.assert_allclose(found[2], long.numpy(), atol=1e-5)
    assert float(short[0] @ short[1]) < 0.99
    assert theirs.similarity_fn_name == "cosine"
