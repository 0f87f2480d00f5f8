"""`distllm generate`: continue prompts, or answer sources, with a trained model."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distllm.commands.arguments import parse_options
from distllm.config.options import option
from distllm.config.schema_optim import Weights
from distllm.errors import ConfigError
from distllm.fsio import storage_errors

if TYPE_CHECKING:
    from distllm.data.tokenizer import Tokenizer
    from distllm.models.init import Model


@dataclass(frozen=True)
class Options:
    """What `distllm generate` takes."""

    run: str | None = option(None, "name or directory of the run")
    model: str | None = option(None, "or a Hugging Face folder")
    prompt: str = option("", "text to continue (empty starts a document), or an encoder-decoder's source")
    file: str | None = option(None, "or a file with one prompt a line, answered together as JSON lines")
    step: int | None = option(None, "checkpoint to use; null takes the newest", minimum=0)
    weights: Weights = option("last", "those after the last update, or their average (optim.ema)")
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
    batch_size: int = option(16, "prompts of a file answered together", minimum=1)
    seed: int = option(0, "root of the random stream", minimum=0)
    runs_dir: str = option("runs", "directory that holds run directories")


def run(words: Sequence[str]) -> int:
    """Print the prompt and its continuation, or one JSON line for each prompt of a file."""
    options = parse_options("generate", Options, words)
    prompts = _prompts(options)
    if (options.run is None) == (options.model is None):
        raise ConfigError(
            "give a run or a model" if options.run is None else "both a run and a model are given",
            where="distllm generate",
            remedy="run=NAME, or model=DIR of a Hugging Face folder",
        )
    model, tokenizer = _of_run(options) if options.run is not None else _of_folder(Path(str(options.model)))
    from distllm.infer.generate import write_texts
    from distllm.infer.sampling import Sampling

    sampling = Sampling(
        options.repetition_penalty, options.temperature, options.top_k, options.top_p, options.min_p
    )
    for start in range(0, len(prompts), options.batch_size):
        some = prompts[start : start + options.batch_size]
        texts = write_texts(
            model,
            tokenizer,
            some,
            max_tokens=options.max_tokens,
            sampling=sampling,
            beams=options.beams,
            length_penalty=options.length_penalty,
            seed=options.seed,
        )
        for prompt, text in zip(some, texts, strict=True):
            if options.file is not None:
                print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False))
            else:
                print(text if model.shape.family == "encoder_decoder" else prompt + text)
    return 0


def _prompts(options: Options) -> list[str]:
    if options.file is None:
        return [options.prompt]
    if options.prompt:
        raise ConfigError(
            "both a prompt and a file of prompts are given", where="prompt, file", remedy="give one of them"
        )
    file = Path(options.file)
    if not file.is_file():
        raise ConfigError(
            f"{file} is no file", where="file", remedy="name a text file with one prompt a line"
        )
    with storage_errors(file):
        return file.read_text(encoding="utf-8").splitlines()


def _of_run(options: Options) -> tuple[Model, Tokenizer]:
    from distllm.commands.runs import run_of

    stored = run_of(str(options.run), options.runs_dir)
    resolved = stored.resolved()
    gc.enable()
    from distllm.infer.load import load_trained

    trained = load_trained(stored.directory.checkpoints, resolved, options.step, options.weights)
    return trained.model, trained.tokenizer


def _of_folder(folder: Path) -> tuple[Model, Tokenizer]:
    from distllm.data.tokenizer import Tokenizer
    from distllm.export.load import load_model

    model = load_model(folder)
    return model, Tokenizer.load(folder)
