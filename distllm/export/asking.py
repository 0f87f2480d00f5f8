"""How the model of a Hugging Face folder is asked: as it was trained, here or elsewhere."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from distllm.config.peft import FACTS, base_of, with_file
from distllm.config.schema_task import TaskConfig
from distllm.data.examples.asking import Asking
from distllm.data.tokenizer import Tokenizer
from distllm.fsio import read_json


def stored_asking(folder: Path, tokenizer: Tokenizer, family: str) -> Asking:
    """Return how the model in ``folder`` is asked.

    What `distllm export` wrote says what it was trained to do. A model from elsewhere begins with what
    transformers has it begin with: an encoder-decoder's start, or what the tokenizer puts before a text.
    """
    file = with_file(folder, FACTS) / FACTS
    if file.is_file():
        said = read_json(file).get("facts", {}).get("config", {}).get("task", {})
        known = {each.name: said[each.name] for each in fields(TaskConfig) if each.name in said}
        return Asking(tokenizer, family, TaskConfig(**known))
    begin = tokenizer.before
    if family == "encoder_decoder":
        start = read_json(base_of(folder) / "config.json").get("decoder_start_token_id")
        begin = [] if start is None else [int(start)]
    return Asking(tokenizer, family, TaskConfig(), begin)
