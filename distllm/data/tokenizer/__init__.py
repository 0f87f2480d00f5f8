"""Text to ids and back: train a lossless tokenizer, or use one of Hugging Face unchanged."""

from distllm.data.tokenizer.folder import CONFIG_FILE, TOKENIZER_FILE, TOKENIZER_FILES, read_template
from distllm.data.tokenizer.packed import Backend
from distllm.data.tokenizer.sample import training_texts
from distllm.data.tokenizer.tokenizer import LossyTokenizer, Tokenizer
from distllm.data.tokenizer.train import EOT

__all__ = [
    "CONFIG_FILE",
    "EOT",
    "TOKENIZER_FILE",
    "TOKENIZER_FILES",
    "Backend",
    "LossyTokenizer",
    "Tokenizer",
    "read_template",
    "training_texts",
]  # fmt: skip
