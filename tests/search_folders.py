"""A small encoder with random weights as a folder, and texts to search."""

import json

import serving

from distllm.config.schema import ModelConfig
from distllm.config.shape import settle_shape
from distllm.export.hf import export_hf
from distllm.models.init import build_model

TEXTS = {
    "cats": "Cats purr and hunt mice at night. " * 2,
    "stocks": "Shares lost value as the markets fell.\nA broker sold all shares of the mill.",
    "cook": "Boil the pasta in salted water for eight minutes, then drain the water.",
    "rain": "Rain fell on the mill all night, and the water rose.",
}


def encoder_folder(folder, seed=1, context=256, head="embedding", **model):
    """Export an encoder with random weights; return the folder."""
    words = serving.tokenizer()
    config = ModelConfig(
        family="encoder", hidden_size=32, num_layers=1, num_heads=4, init_std=0.2, positions="learned",
        norm="layer", norm_place="post", norm_bias=True, attention_bias=True, attention_out_bias=True,
        mlp_bias=True, gated=False, activation="gelu", embed_norm=True, token_types=2, **model,
    )  # fmt: skip
    shape = settle_shape(config, words.vocab_size, context)
    trained = build_model(shape, seed=seed, head=head).eval()
    export_hf(trained.state_dict(), shape, words, folder, {}, head=head)
    return folder


def corpus_file(path, texts=TEXTS):
    """Write texts as JSON lines; return the path."""
    path.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items()))
    return path
