"""Keys that say how text becomes token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distllm.config.options import option


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes token ids."""

    kind: Literal["bpe", "unigram"] = option(
        "bpe", "model to train over bytes: byte-pair encoding or unigram", on_resume="identity"
    )
    vocab_size: int = option(8192, "size of the vocabulary to train", on_resume="identity", minimum=258)
    min_frequency: int = option(2, "rarer pairs are not merged (bpe)", on_resume="identity", minimum=1)
    train_bytes: int = option(
        256 * 2**20,
        "train on at most this much text, sampled evenly over documents",
        unit="bytes",
        on_resume="identity",
        minimum=1,
    )
    special_tokens: tuple[str, ...] = option(
        (),
        "additional special tokens, such as <|im_start|>; never recognised inside text",
        on_resume="identity",
    )
    chat_template: str | None = option(
        None, "a Jinja file that renders conversations; kept with the tokenizer", on_resume="identity"
    )
    path: str | None = option(
        None, "a tokenizer.json (or its folder) to use instead of training one", on_resume="identity"
    )
    backend: Literal["auto", "tokenizers", "gigatoken"] = option(
        "auto", "the encoder; auto: gigatoken where it is installed and gives the same ids"
    )
