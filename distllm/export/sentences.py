"""The files of `sentence-transformers`: how hidden states become the vector of a text."""

from __future__ import annotations

from pathlib import Path

from distllm.config.shape import ModelShape
from distllm.fsio import atomic_write_json

_MODULES = ("Transformer", "Pooling", "Normalize")


def write_sentence_encoder(folder: Path, shape: ModelShape) -> None:
    """Add the files with which ``SentenceTransformer(folder)`` gives the same vectors as our encoder.

    They hold the shape's pooling, the normalisation to length 1, and the longest text.

    Raises:
        StorageError: a file cannot be written.
    """
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{name}" if number else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for number, name in enumerate(_MODULES)
    ]
    atomic_write_json(folder / "modules.json", modules)
    atomic_write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": shape.max_seq_len, "do_lower_case": False}
    )
    atomic_write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})
    pooling = {
        "word_embedding_dimension": shape.hidden_size,
        "pooling_mode_cls_token": shape.pooling == "cls",
        "pooling_mode_mean_tokens": shape.pooling == "mean",
    }
    for path in (folder / "1_Pooling", folder / "2_Normalize"):
        path.mkdir()
    atomic_write_json(folder / "1_Pooling" / "config.json", pooling)
