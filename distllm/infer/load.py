"""Loading a trained model out of a run's checkpoints, in one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from distllm.checkpoint.load import Found, find_checkpoint, read_weights
from distllm.config.resolve import Resolved
from distllm.config.schema_optim import Weights
from distllm.data.mirror import dataset_directory
from distllm.data.tokenizer import Tokenizer
from distllm.data.tokenizer.fit import misfit
from distllm.errors import CheckpointError, ConfigError
from distllm.export.base import adapt
from distllm.export.load import load_model
from distllm.export.prompts import prompt_builder_of
from distllm.models.heads import head_of
from distllm.models.init import Model, bare_model
from distllm.models.lora import AdaptedLinear, adapters_of, learned_beside, merge_adapters
from distllm.optim.ema import SLOT, total_weight


@dataclass(frozen=True, slots=True)
class Trained:
    """A model in evaluation mode, its tokenizer, and the facts of its training.

    Adapters are merged into the model, and kept by the names of their matrices; ``learned`` holds the
    other weights that were trained with them. ``begin`` is the id that texts begin with; None means EOT,
    as in all training here.
    """

    model: Model
    tokenizer: Tokenizer
    step: int
    facts: dict[str, Any]
    adapters: Mapping[str, AdaptedLinear] = field(default_factory=dict)
    learned: Mapping[str, Tensor] = field(default_factory=dict)
    begin: int | None = None


def load_trained(
    checkpoints: Path, resolved: Resolved, step: int | None = None, weights: Weights = "last"
) -> Trained:
    """Load the newest verified checkpoint, or that of ``step``, on the CPU in fp32.

    Raises:
        ConfigError: ``weights="ema"``, and the checkpoint holds no average.
        CheckpointError: there is none, it is damaged, or the base weights of its adapters are missing.
    """
    found = find_checkpoint(checkpoints, quarantine=False, step=step)
    if found is None:
        names = sorted(path.name for path in checkpoints.glob("step-*"))
        raise CheckpointError(
            "the run has no checkpoint" if step is None else f"the run has no checkpoint of step {step}",
            where=str(checkpoints),
            remedy="train it first" + (f", or choose one of: {', '.join(names)}" if names else ""),
        )
    config = resolved.config
    model = bare_model(resolved.shape, head=head_of(config.task.name))
    if config.model.lora.rank:
        adapt(model, config.model, config.seed, found.facts["base"])
    if weights == "ema":
        read_weights(found, model, SLOT, 1.0 / _total_weight(found, config.optim.ema))
    else:
        read_weights(found, model)
    adapters, learned = adapters_of(model), learned_beside(model)
    merge_adapters(model)
    facts = {**found.facts, **found.train_state, "step": found.step}
    tokenizer = Tokenizer.load(dataset_directory(config.data))
    return Trained(model.eval(), tokenizer, found.step, facts, adapters, learned)


def load_folder(folder: Path, resolved: Resolved) -> Trained:
    """Load the Hugging Face folder ``folder`` in place of a checkpoint of a run, on the CPU in fp32.

    Raises:
        ConfigError: its architecture is not known, or its family or tokenizer does not fit the run.
        CheckpointError: a weight is missing or of the wrong size, also one of the head.
    """
    wanted, config = resolved.shape, resolved.config
    model = load_model(folder, head=head_of(config.task.name))
    tokenizer = Tokenizer.load(dataset_directory(config.data))
    if model.shape.family != wanted.family:
        raise ConfigError(
            f"{folder} holds a model of family {model.shape.family}, and the run is of {wanted.family}",
            where="distllm evaluate model=...",
            remedy=f"name a folder of family {wanted.family}",
        )
    found = misfit(dataset_directory(config.data), folder)
    if found is None and model.shape.vocab_size < tokenizer.vocab_size:
        found = f"it knows {model.shape.vocab_size} ids of {tokenizer.vocab_size}"
    if found is not None:
        raise ConfigError(
            f"the tokenizer of the run's dataset does not fit the model in {folder}: {found}",
            where="distllm evaluate model=...",
            remedy="measure it in a run whose dataset was prepared with tokenizer.path at this folder",
        )
    begin = prompt_builder_of(folder, tokenizer, wanted.family).opened()[0]
    return Trained(model, tokenizer, 0, {}, begin=begin)


def _total_weight(found: Found, decay: float | None) -> float:
    if decay is None or found.optimizer_steps == 0:
        raise ConfigError(
            f"the checkpoint of step {found.step} holds no average of the weights",
            where="optim.ema" if decay is None else str(found.path),
            remedy="train with optim.ema=0.999; or leave weights=last",
        )
    return total_weight(decay, found.optimizer_steps)
