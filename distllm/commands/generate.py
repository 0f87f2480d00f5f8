"""`distllm generate`: continue prompts, or answer sources, with a trained model."""

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
    """Options of `distllm generate`."""

    prompt: str = option("", "text to continue (empty starts a document), or an encoder-decoder's source")
    file: str | None = option(None, "or a file with one prompt a line, answered together as JSON lines")
    max_tokens: int = option(100, "longest continuation", minimum=1)
    temperature: float = option(0.8, "sampling temperature; 0 is greedy", minimum=0.0)
    top_k: int | None = option(None, "sample among the k likeliest tokens", minimum=1)
    top_p: float | None = option(
        None, "sample among the likeliest tokens of this mass", minimum=0.0, maximum=1.0
    )
    min_p: float | None = option(
        None, "sample among tokens at least this share as likely as the likeliest", minimum=0.0, maximum=1.0
    )
    repetition_penalty: float = option(1.0, "make what was said less likely by this factor", minimum=1e-3)
    beams: int = option(1, "texts kept by beam search; 1 draws token by token", minimum=1)
    length_penalty: float = option(1.0, "beam search: above 0 favours long texts, below 0 short ones")
    early_stopping: Literal[True, False, "never"] = option(False, EARLY_STOPPING)
    batch_size: int = option(16, "prompts of a file answered together", minimum=1)
    seed: int = option(0, "root of the random stream", minimum=0)


def run(words: Sequence[str]) -> int:
    """Print the prompt and its continuation, or one JSON line for each prompt of a file."""
    options = parse_options("generate", Options, words)
    prompts = texts_of(options.prompt, options.file, "prompt")
    backend = open_model(options, "generate")
    from distllm.infer.beam import Search
    from distllm.infer.generate import write_texts
    from distllm.infer.sampling import Sampling

    sampling = Sampling(
        options.repetition_penalty, options.temperature, options.top_k, options.top_p, options.min_p
    )
    for start in range(0, len(prompts), options.batch_size):
        some = prompts[start : start + options.batch_size]
        texts = write_texts(
            backend.model,
            backend.tokenizer,
            [backend.prompts.to_continue(prompt) for prompt in some],
            max_tokens=options.max_tokens,
            sampling=sampling,
            search=Search(options.beams, options.length_penalty, options.early_stopping),
            seed=options.seed,
            first_row=start,
        )
        for prompt, text in zip(some, texts, strict=True):
            if options.file is not None:
                print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False))
            else:
                print(text if backend.family == "encoder_decoder" else prompt + text)
    return 0
