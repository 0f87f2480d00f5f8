"""The frozen base weights of adapters: every attempt reads them from their folder; no checkpoint has them."""

from __future__ import annotations

from pathlib import Path

from distllm.config.peft import base_of
from distllm.config.schema_model import ModelConfig
from distllm.dist.fingerprint import fingerprint
from distllm.errors import CheckpointError
from distllm.export.adapted import begin_adapters
from distllm.export.load import load_weights
from distllm.models.init import Model
from distllm.models.lora import add_adapters


def adapt(model: Model, config: ModelConfig, seed: int, known: str | None = None) -> str:
    """Give a model the weights of ``config.init_from``, frozen, and adapters.

    Adapters are new or, unless a checkpoint provides them, those of ``config.lora.init_from``.

    Args:
        model: of the folder's shape.
        config: its keys; ``lora.rank`` is at least 1.
        seed: root of the adapters' random streams.
        known: fingerprint of the base weights of a checkpoint's adapters.

    Returns:
        The fingerprint of the frozen weights, as 16 hexadecimal digits.

    Raises:
        CheckpointError: the folder is missing, lacks a frozen weight, or its fingerprint is not ``known``.
    """
    folder = Path(str(config.init_from))
    if not folder.is_dir() or not (base_of(folder) / "config.json").is_file():
        raise CheckpointError(
            f"the weights below the adapters are gone: {folder} holds no config.json",
            where=f"model.init_from={folder}",
            remedy="put the folder back: a checkpoint of adapters does not hold what they adapt",
        )
    missing = load_weights(model, model.shape, folder)
    add_adapters(model, model.shape, config.lora, seed)
    if config.lora.init_from is not None and known is None:
        begin_adapters(model, model.shape, folder, Path(config.lora.init_from))
    frozen = {name: weight for name, weight in model.named_parameters() if not weight.requires_grad}
    if lacking := [name for name in missing if name in frozen]:
        raise CheckpointError(
            f"{folder} has no {', '.join(lacking)}: drawn at random and frozen, it would never learn",
            where=f"model.init_from={folder}",
            remedy="train it first with model.lora.rank=0, or begin with a folder that has it",
        )
    found = f"{fingerprint(frozen.values()):016x}"
    if known not in (None, found):
        raise CheckpointError(
            f"the adapters belong to other weights than those of {folder}",
            where=f"model.init_from={folder}",
            remedy="put back the folder that the run began with; what is in it must not change",
        )
    return found
