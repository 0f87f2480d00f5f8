"""`distllm translate`: translate or summarise with a model trained on pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distllm.commands.arguments import parse_options
from distllm.commands.models import EARLY_STOPPING, ModelOptions, open_model, texts_of
from distllm.config.options import option


@dataclass(frozen=True)
class Options(ModelOptions):
    """Options of `distllm translate`."""

    text: str | None = option(None, "the source")
    file: str | None = option(None, "or a file with one source per line; the output is JSON lines")
    max_tokens: int = option(256, "longest output", minimum=1)
    beams: int = option(4, "texts kept by beam search; 1 takes the most likely token", minimum=1)
    length_penalty: float = option(1.0, "above 0 favours long texts, below 0 short ones")
    early_stopping: Literal[True, False, "never"] = option(False, EARLY_STOPPING)
    batch_size: int = option(16, "sources of a file that are processed together", minimum=1)


def run(words: Sequence[str]) -> int:
    """Print the target of a source, or one JSON line for each source of a file."""
    options = parse_options("translate", Options, words)
    sources = texts_of(options.text, options.file, "text")
    backend = open_model(options, "translate")
    backend.require("translate")
    from distllm.infer.beam import Search

    search = Search(options.beams, options.length_penalty, options.early_stopping)
    for start in range(0, len(sources), options.batch_size):
        some = sources[start : start + options.batch_size]
        translations = backend.translate(some, options.max_tokens, search)
        for source, text in zip(some, translations, strict=True):
            as_line = options.file is not None
            print(json.dumps({"source": source, "text": text}, ensure_ascii=False) if as_line else text)
    return 0
