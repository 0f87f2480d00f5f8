"""`distllm answer`: answer a question from a text, or from the best passages of a search index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distllm.commands.arguments import parse_options
from distllm.commands.models import ModelOptions, open_model
from distllm.commands.runs import require
from distllm.config.options import option
from distllm.errors import ConfigError
from distllm.fsio import storage_errors


@dataclass(frozen=True)
class Options(ModelOptions):
    """Options of `distllm answer`."""

    question: str | None = option(None, "the question")
    context: str | None = option(None, "the text that holds the answer")
    file: str | None = option(None, "or a file that holds it")
    index: str | None = option(None, "or a search index, whose best passages are read")
    top: int = option(3, "passages of the index to read", minimum=1, maximum=100)
    max_tokens: int = option(64, "longest answer in a decoder's own words", minimum=1)


def run(words: Sequence[str]) -> int:
    """Print the answer, and the passages that it was looked for in."""
    options = parse_options("answer", Options, words)
    question = require(options.question, "question", "answer")
    passages = _passages(options, question)
    backend = open_model(options, "answer")
    backend.require("answer")
    text, sources = backend.answer(question, passages, options.max_tokens)
    print(text or "no answer")
    for source in sources if options.index is not None else ():
        print(f"  {source['title']}  {source['score']:.3f}")
    return 0


def _passages(options: Options, question: str) -> list[dict[str, Any]]:
    given = [name for name in ("context", "file", "index") if getattr(options, name) is not None]
    if len(given) != 1:
        raise ConfigError(
            "no text to look for the answer in"
            if not given
            else f"give only one of context, file and index, not {' and '.join(given)}",
            where="distllm answer",
            remedy="give context=TEXT, file=PATH or index=DIR",
        )
    if options.index is not None:
        from distllm.commands.search import open_index

        found: list[dict[str, Any]] = open_index(options.index).search(question, options.top)
        return found
    if options.context is not None:
        return [{"title": "context", "passage": options.context}]
    path = Path(str(options.file))
    if not path.is_file():
        raise ConfigError(f"{path} is not a file", where="file", remedy="name a text file")
    with storage_errors(path):
        return [{"title": path.name, "passage": path.read_text(encoding="utf-8")}]
