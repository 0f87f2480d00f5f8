"""Adapters as a folder that `peft` loads on top of the model they were trained on.

Where an architecture of transformers has one matrix for several of our projections (GPT-2's ``c_attn``),
their adapters become one: the ``a`` matrices stacked, the ``b`` matrices on the diagonal, and rank and
alpha multiplied by their number. The product is the same.

Shapes: C inputs, I outputs of one of their matrices, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from distllm.config.huggingface import write_config
from distllm.config.peft import CONFIG, FACTS, WEIGHTS
from distllm.config.schema_lora import LoraConfig
from distllm.config.shape import ModelShape
from distllm.export.names import Rule, rules
from distllm.fsio import atomic_directory, atomic_write_bytes, atomic_write_json
from distllm.models.heads import HeadName
from distllm.models.lora import AdaptedLinear

_PREFIX = "base_model.model."
_TASKS = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM"}


@dataclass(frozen=True, slots=True)
class _Adapter:
    """One adapter in peft's layout: the module it belongs to, and how many of our adapters it holds."""

    module: str
    a_RC: Tensor
    b_IR: Tensor
    parts: int


def export_adapter(
    adapters: Mapping[str, AdaptedLinear],
    learned: Mapping[str, Tensor],
    shape: ModelShape,
    config: LoraConfig,
    base: str,
    out: Path,
    facts: Mapping[str, Any],
    head: HeadName = "masked_lm",
) -> None:
    """Write the folder ``out``: ``adapter_config.json`` and ``adapter_model.safetensors``.

    Args:
        adapters: the adapted matrices by name.
        learned: weights trained as a whole, by name: those of a head.
        shape: the model's.
        config: rank and scale.
        base: the folder of the model that is adapted.
        out: the folder; an earlier export there is replaced.
        facts: plain values of the run, for ``distllm.json``.
        head: what stands on an encoder.

    Raises:
        ConfigError: ``out`` holds something that is not an export, or transformers has no such model.
        StorageError: the folder cannot be written.
    """
    model_type, _ = write_config(shape)
    found = [
        adapter
        for rule in rules(model_type, shape, [f"{name}.weight" for name in adapters])
        for adapter in _adapters(rule, adapters[rule.ours.removesuffix(".weight")])
    ]
    whole = dict(
        pair for rule in rules(model_type, shape, learned) for pair in rule.split(learned[rule.ours])
    )
    content = {
        "task_type": "QUESTION_ANS" if head == "span" else _TASKS.get(shape.family),
        "base_model_name_or_path": base,
        "modules_to_save": sorted({name.rpartition(".")[0] for name in whole}) or None,
        "fan_in_fan_out": model_type == "gpt2",
        **_peft_fields(found, config),
    }
    lora = {"rank": config.rank, "alpha": config.alpha, "targets": list(config.targets)}
    with atomic_directory(Path(out), FACTS) as folder:
        blob = safetensors.torch.save(_tensors(found, whole), metadata={"format": "pt"})
        atomic_write_bytes(folder / WEIGHTS, blob)
        atomic_write_json(folder / CONFIG, content)
        atomic_write_json(folder / FACTS, {"kind": "distllm export", "lora": lora, "facts": dict(facts)})


def _peft_fields(found: Sequence[_Adapter], config: LoraConfig) -> dict[str, Any]:
    """Return the fields of ``adapter_config.json`` that describe the adapters."""
    joined = [adapter for adapter in found if adapter.parts > 1]
    return {
        "peft_type": "LORA",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": [adapter.module for adapter in found],
        "rank_pattern": {adapter.module: adapter.parts * config.rank for adapter in joined},
        "alpha_pattern": {adapter.module: adapter.parts * config.alpha for adapter in joined},
        "bias": "none",
        "inference_mode": True,
    }


def _tensors(found: Sequence[_Adapter], whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of ``adapter_model.safetensors`` under peft's names."""
    tensors = {}
    for adapter in found:
        tensors[f"{_PREFIX}{adapter.module}.lora_A.weight"] = adapter.a_RC
        tensors[f"{_PREFIX}{adapter.module}.lora_B.weight"] = adapter.b_IR
    tensors |= {_PREFIX + name: weight for name, weight in whole.items()}
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _adapters(rule: Rule, module: AdaptedLinear) -> Iterator[_Adapter]:
    """Yield the adapters, in peft's layout, of one of our matrices."""
    if len(rule.theirs) == len(module.rows):
        for theirs, name in zip(rule.theirs, module.rows, strict=True):
            if name in module.adapted:
                yield _Adapter(theirs.removesuffix(".weight"), *module.adapter(name), parts=1)
        return
    (theirs,) = rule.theirs
    pairs = {name: module.adapter(name) for name in module.adapted}
    rank = next(iter(pairs.values()))[0].shape[0]
    b_IR = torch.zeros(sum(module.rows.values()), rank * len(pairs))
    rows = dict(zip(module.rows, torch.split(b_IR, list(module.rows.values())), strict=True))
    for number, (name, (_, own_IR)) in enumerate(pairs.items()):
        rows[name][:, number * rank : (number + 1) * rank] = own_IR.detach()
    a_RC = torch.cat([own_RC for own_RC, _ in pairs.values()])
    yield _Adapter(theirs.removesuffix(".weight"), a_RC, b_IR, len(pairs))
