"""distllm: from raw text to a trained, evaluated, exported Transformer."""

__version__ = "0.1.0"
