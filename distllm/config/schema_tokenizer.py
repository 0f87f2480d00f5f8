"""Keys that say how text becomes token ids."""

from __future__ import annotations

from dataclasses import dataclass

from distllm.config.options import option


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes token ids."""

    vocab_size: int = option(
        8192, "size of the byte-level BPE vocabulary to train", on_resume="identity", minimum=258
    )
    path: str | None = option(
        None, "a tokenizer.json (or its folder) to use instead of training one", on_resume="identity"
    )
