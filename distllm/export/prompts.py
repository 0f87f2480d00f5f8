"""The prompts of the model in a Hugging Face folder: as in its training, here or elsewhere."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from distllm.config.peft import FACTS, base_of, with_file
from distllm.config.schema_task import TaskConfig
from distllm.data.examples.prompts import PromptBuilder
from distllm.data.tokenizer import Tokenizer
from distllm.fsio import read_json


def prompt_builder_of(folder: Path, tokenizer: Tokenizer, family: str) -> PromptBuilder:
    """Return what makes the prompts of the model in ``folder``.

    A folder of `distllm export` says what its model was trained on. A model from elsewhere begins as in
    transformers: with an encoder-decoder's start id, or with what the tokenizer puts before a text.
    """
    file = with_file(folder, FACTS) / FACTS
    if file.is_file():
        said = read_json(file).get("facts", {}).get("config", {}).get("task", {})
        known = {each.name: said[each.name] for each in fields(TaskConfig) if each.name in said}
        return PromptBuilder(tokenizer, family, TaskConfig(**known))
    begin = tokenizer.before
    if family == "encoder_decoder":
        start = read_json(base_of(folder) / "config.json").get("decoder_start_token_id")
        begin = [] if start is None else [int(start)]
    return PromptBuilder(tokenizer, family, TaskConfig(), begin)
