"""Samples of documents with several fields: translation, questions, conversations, preferences."""

from distllm.data.examples.framing import Example, Framing
from distllm.data.examples.registry import FRAMED_TASKS, framing_of
from distllm.data.examples.split import ExampleSplit

__all__ = ["FRAMED_TASKS", "Example", "ExampleSplit", "Framing", "framing_of"]
