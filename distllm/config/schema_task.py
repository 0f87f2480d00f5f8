"""Keys that say what the model learns to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from distllm.config.options import option

TaskName: TypeAlias = Literal[
    "causal_lm",
    "masked_lm",
    "span_corruption",
    "seq2seq",
    "instruct",
    "extractive_qa",
    "contrastive",
    "dpo",
]


@dataclass(frozen=True)
class TaskConfig:
    """What the model learns to do."""

    name: TaskName = option("causal_lm", "the objective", on_resume="identity")
    label_smoothing: float = option(
        0.0,
        "share of a target's probability spread over all ids in training (padding ids too)",
        on_resume="schedule",
        minimum=0.0,
        maximum=0.9,
    )
    z_loss: float = option(
        0.0, "factor of the squared log-normaliser added in training", on_resume="schedule", minimum=0.0
    )
    mask_fraction: float = option(
        0.15, "share of tokens to hide (masked_lm, span_corruption)", on_resume="identity",
        minimum=0.01, maximum=0.9,
    )  # fmt: skip
    whole_word: bool = option(False, "hide whole words, not single tokens (masked_lm)", on_resume="identity")
    mean_span: float = option(
        3.0, "mean length of a hidden span (span_corruption)", on_resume="identity", minimum=1.0
    )
    prompt: str = option(
        "{source}\n=> ", "what a decoder reads before the target of a pair", on_resume="identity"
    )
    question_prompt: str = option(
        "{context}\nQuestion: {question}\nAnswer: ",
        "what a decoder reads before the answer to a question",
        on_resume="identity",
    )
    preference_prompt: str = option(
        "{prompt}", "what a decoder reads before either answer (dpo)", on_resume="identity"
    )
    unanswerable: str = option(
        "no answer", "the answer to a question that has none (instruct)", on_resume="identity"
    )
    stride: int = option(
        64, "context tokens from a window to the next (extractive_qa)", on_resume="identity", minimum=1
    )
    temperature: float = option(
        0.05, "similarities are divided by it (contrastive)", on_resume="identity", minimum=1e-3
    )
    beta: float = option(
        0.1, "how strongly the model is held to the reference (dpo)", on_resume="identity", minimum=1e-4
    )
    nll_weight: float = option(
        0.0, "factor of the preferred answer's own loss, its mean over tokens, which is added (dpo)",
        on_resume="schedule", minimum=0.0,
    )  # fmt: skip
