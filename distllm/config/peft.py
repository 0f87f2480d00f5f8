"""Adapters in peft's format: their base model, and which of their options are supported. Imports no torch.

The folder of an adapter stands for its base model with the adapter applied. Options that change results and
are not supported are refused by name, never dropped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distllm.config.huggingface_names import BASES, LAYERS
from distllm.config.schema_lora import PARTS, PROJECTIONS, LoraConfig, Projection
from distllm.config.weight_files import holds_model, tensor_sizes
from distllm.errors import ConfigError, IntegrityError
from distllm.fsio import read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FACTS = "distllm.json"
"""The file in which `distllm export` describes the run, next to a model or an adapter."""
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_ALPHA = 8  # peft's default
# Keys that are read here, or do not change what trained adapters compute.
_KNOWN = frozenset(
    {
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying",
        "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
        "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core",
        "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
        "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
    }
)  # fmt: skip
_MADE = "start from the adapted model: model.init_from=ADAPTER, without model.lora.init_from"
# With these initialisations peft changes the base model as well, which the adapter's files do not contain.
_OTHER_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A folder of `peft`: ``said`` is its adapter_config.json."""

    folder: Path
    said: Mapping[str, Any]

    def scale(self, module: str, rank: int) -> float:
        """Return the factor of a module's adapter.

        Raises:
            ConfigError: the stored values are not valid.
        """
        patterns = self.said.get("alpha_pattern") or {}
        try:
            key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
            alpha = float(self.said.get("lora_alpha", _ALPHA) if key is None else patterns[key])
        except (TypeError, ValueError, re.error) as error:
            raise ConfigError(
                f"the adapter in {self.folder} has no alpha: {error}",
                where=f"{self.folder / CONFIG}: lora_alpha, alpha_pattern",
                remedy="get the folder again, or write there what it was trained with",
            ) from error
        return alpha / (math.sqrt(rank) if self.said.get("use_rslora") else rank)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / CONFIG).is_file() and not holds_model(folder)


def base_of(folder: Path) -> Path:
    """Return the folder of the base model if ``folder`` holds an adapter, else ``folder`` itself.

    Raises:
        ConfigError: the base model is not a folder on this machine.
    """
    if not is_adapter(folder):
        return folder
    named = read_json(folder / CONFIG).get("base_model_name_or_path")
    base = Path(str(named))
    if not (base / "config.json").is_file():
        raise ConfigError(
            f"{folder} holds a peft adapter, and its base model {named} is not a folder on this machine",
            where=f"{folder / CONFIG}: base_model_name_or_path",
            remedy="download that model and write its folder there; distllm does not download from a hub",
        )
    return base


def with_file(folder: Path, name: str) -> Path:
    """Return the folder that holds the file ``name``: an adapter's own, or that of its base model."""
    return folder if (folder / name).is_file() else base_of(folder)


def read_adapter(folder: Path) -> Adapter:
    """Return the adapter in a folder.

    Raises:
        ConfigError: there is none, or it has an option that is not supported.
    """
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"{folder} holds no {CONFIG}",
            where=str(folder),
            remedy="name a folder written by peft's save_pretrained, or an adapter/ of distllm export",
        )
    said = read_json(folder / CONFIG)
    begun = str(said.get("init_lora_weights", True)).lower()
    other = [key for key, value in said.items() if value and key not in _KNOWN]
    if said.get("peft_type") != "LORA":
        other = [f"peft_type={said.get('peft_type')}"]
    elif said.get("bias", "none") != "none":
        other.append(f"bias={said['bias']}")
    if begun.startswith(_OTHER_BASE):
        other.append(f"init_lora_weights={begun}")
    if other:
        raise ConfigError(
            f"the adapter in {folder} uses {', '.join(sorted(other))}, which is not supported",
            where=str(folder / CONFIG),
            remedy="merge it with peft: model.merge_and_unload().save_pretrained(DIR), and name DIR",
        )
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(
            f"{folder} holds no {WEIGHTS}",
            where=str(folder),
            remedy="save the adapter with safetensors; pickled weights are never read",
        )
    return Adapter(folder, said)


def adapted_modules(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return the names of both matrices of each adapter, by module."""
    return {
        name.removeprefix(_PREFIX).removesuffix(_A): (name, name.removesuffix(_A) + _B)
        for name in names
        if name.endswith(_A)
    }


def whole_weights(names: Iterable[str]) -> dict[str, str]:
    """Return the names of whole weights in an adapter's folder, by the names of the weights they replace."""
    return {name.removeprefix(_PREFIX): name for name in names if ".lora_" not in name}


def with_settled_lora(asked: LoraConfig, model_type: str) -> LoraConfig:
    """Return the settings of the adapters in ``asked.init_from``, except dropout, which is for training.

    Raises:
        ConfigError: it holds none, or its adapters differ from layer to layer, which ``model.lora`` cannot
            express.
    """
    folder = Path(str(asked.init_from))
    adapter = read_adapter(folder)
    own = _stored_config(folder)
    if own is not None:
        return replace(asked, **own)
    sizes = tensor_sizes(folder / WEIGHTS)
    ranks = {module: sizes[a][0] for module, (a, _) in adapted_modules(sizes).items()}
    held = {module: _projections(model_type, module) for module in ranks}
    if strange := sorted(module for module, names in held.items() if not names):
        raise ConfigError(
            f"a run cannot adapt {strange[0]}, which has an adapter",
            where=str(folder / WEIGHTS),
            remedy=f"{_MADE}; runs adapt {', '.join(PROJECTIONS)}",
        )
    scales = {module: adapter.scale(module, rank) for module, rank in ranks.items()}
    for key, values in (("rank_pattern", ranks), ("alpha_pattern", scales)):
        if len(set(values.values())) != 1:
            raise ConfigError(
                f"the adapters in {folder} differ ({key}), and those of a run must be alike",
                where=str(folder / CONFIG),
                remedy=_MADE,
            )
    rank, scale = next(iter(ranks.values())), next(iter(scales.values()))
    found = {name for names in held.values() for name in names}
    targets = tuple(name for name in PROJECTIONS if name in found)
    return replace(asked, rank=rank, alpha=scale * rank, targets=targets)


def _stored_config(folder: Path) -> dict[str, Any] | None:
    """Return the settings that `distllm export` stores: peft's format cannot express joined matrices."""
    said = read_json(folder / FACTS).get("lora") if (folder / FACTS).is_file() else None
    if said is None:
        return None
    try:
        return {"rank": int(said["rank"]), "alpha": float(said["alpha"]), "targets": tuple(said["targets"])}
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"{folder / FACTS} does not say what its adapters are: {error!r}",
            where=f"{folder / FACTS}: lora",
            remedy="export the run again, or get the folder again",
        ) from error


def _projections(model_type: str, module: str) -> tuple[Projection, ...]:
    """Return the projections of distllm's model in a module of transformers; none for other modules."""
    base = BASES.get(model_type, "")
    for place, table in LAYERS[model_type].values():
        start = next((s for s in (f"{place}.", f"{place.removeprefix(base)}.") if module.startswith(s)), None)
        if start is None:
            continue
        part = module.removeprefix(start).partition(".")[2]
        for ours, theirs in table.items():
            held = PARTS.get(ours.rpartition(".")[2], ())
            if theirs == part:
                return held
            if not isinstance(theirs, str) and part in theirs:
                return (held[theirs.index(part)],)
    return ()
