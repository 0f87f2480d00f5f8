"""Opening trained models for the commands that use one."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distllm.config.options import option
from distllm.config.schema_optim import Weights
from distllm.errors import ConfigError
from distllm.fsio import storage_errors

if TYPE_CHECKING:
    from distllm.serve.backend import Backend, SearchIndex


EARLY_STOPPING = (
    "beam search ends when as many texts have ended as there are beams (true), when no other would be better "
    "that ended now (false), or when none can become better (never)"
)


@dataclass(frozen=True)
class ModelOptions:
    """Which model answers."""

    run: str | None = option(None, "name or directory of the run")
    model: str | None = option(None, "or a Hugging Face folder; also one of an adapter of peft")
    step: int | None = option(None, "checkpoint to use; null takes the newest", minimum=0)
    weights: Weights = option("last", "those after the last update, or their average (optim.ema)")
    runs_dir: str = option("runs", "directory that holds run directories")


def open_model(options: ModelOptions, command: str, index: SearchIndex | None = None) -> Backend:
    """Load the model, in evaluation mode on the CPU.

    Raises:
        ConfigError: none is named, or two are, or there is no such run or folder.
        CheckpointError: its weights are missing or damaged.
    """
    if (options.run is None) == (options.model is None):
        raise ConfigError(
            "give a run or a model" if options.run is None else "both a run and a model are given",
            where=f"distllm {command}",
            remedy="run=NAME, or model=DIR of a Hugging Face folder",
        )
    gc.enable()
    if options.model is not None:
        return _of_folder(Path(options.model), index)
    from distllm.commands.runs import run_of

    stored = run_of(str(options.run), options.runs_dir)
    resolved = stored.resolved()
    from distllm.data.examples.prompts import PromptBuilder
    from distllm.infer.load import load_trained
    from distllm.serve.backend import Backend

    trained = load_trained(stored.directory.checkpoints, resolved, options.step, options.weights)
    prompts = PromptBuilder(trained.tokenizer, resolved.shape.family, stored.config.task)
    return Backend(stored.config.name, trained.model, trained.tokenizer, prompts, index)


def _of_folder(folder: Path, index: SearchIndex | None) -> Backend:
    from distllm.config.peft import with_file
    from distllm.data.tokenizer import TOKENIZER_FILE, Tokenizer
    from distllm.export.load import load_model, shape_of, stored_head
    from distllm.export.prompts import prompt_builder_of
    from distllm.serve.backend import Backend

    shape = shape_of(folder)  # is there a model at all
    model = load_model(folder, head=stored_head(folder))
    tokenizer = Tokenizer.load(with_file(folder, TOKENIZER_FILE))
    prompts = prompt_builder_of(folder, tokenizer, shape.family)
    return Backend(folder.resolve().name, model, tokenizer, prompts, index)


def texts_of(text: str | None, file: str | None, key: str) -> list[str]:
    """Return the one text that is given, or the lines of a file.

    Raises:
        ConfigError: both are given, or neither, or there is no such file.
    """
    if (text is None and file is None) or (text and file is not None):
        raise ConfigError(
            f"both a {key} and a file are given" if text else f"neither a {key} nor a file is given",
            where=f"{key}, file",
            remedy=f"give {key}=TEXT, or file=PATH with one {key} a line",
        )
    if file is None:
        return [str(text)]
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"{path} is not a file", where="file", remedy=f"name a text file, one {key} a line")
    with storage_errors(path):
        return path.read_text(encoding="utf-8").splitlines()
