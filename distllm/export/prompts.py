"""The prompts of the model in a Hugging Face folder: as in its training, here or elsewhere."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from distllm.config.peft import FACTS, base_of, with_file
from distllm.config.problems import Problems
from distllm.config.schema_task import TaskConfig
from distllm.config.validate import build
from distllm.data.examples.prompts import PromptBuilder
from distllm.data.tokenizer import Tokenizer
from distllm.errors import IntegrityError
from distllm.fsio import read_json


def prompt_builder_of(folder: Path, tokenizer: Tokenizer, family: str) -> PromptBuilder:
    """Return what makes the prompts of the model in ``folder``.

    A folder of `distllm export` says what its model was trained on. A model from elsewhere begins as in
    transformers: with an encoder-decoder's start id, or with what the tokenizer puts before a text, which
    for many tokenizers is nothing.
    """
    file = with_file(folder, FACTS) / FACTS
    if file.is_file():
        return PromptBuilder(tokenizer, family, _stored_task(file))
    begin = tokenizer.before
    if family == "encoder_decoder":
        start = read_json(base_of(folder) / "config.json").get("decoder_start_token_id")
        begin = [start] if isinstance(start, int) else []
    return PromptBuilder(tokenizer, family, TaskConfig(), begin)


def _stored_task(file: Path) -> TaskConfig:
    """Return the task that `distllm export` wrote down; keys of other versions are passed over.

    Raises:
        IntegrityError: the file is damaged.
    """
    said: Any = read_json(file)
    for key in ("facts", "config", "task"):
        said = said.get(key, {}) if isinstance(said, dict) else None
    problems = Problems()
    if isinstance(said, dict):
        known = {each.name for each in fields(TaskConfig)}
        task = build(TaskConfig, {key: value for key, value in said.items() if key in known}, problems)
        if not problems.found:
            return task
    raise IntegrityError(
        f"{file} does not say what the model was trained on",
        where=f"{file}: facts.config.task",
        remedy="export the run again, or get the folder again",
    )
