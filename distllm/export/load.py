"""Loading the weights of a Hugging Face folder, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from distllm.config.checks_model import check_block
from distllm.config.huggingface import read_folder
from distllm.config.peft import CONFIG, base_of, is_adapter, with_file
from distllm.config.problems import Problems
from distllm.config.shape import ModelShape, settle_shape
from distllm.config.weight_files import weight_files
from distllm.errors import CheckpointError, ConfigError
from distllm.export.adapted import add_adapter
from distllm.export.names import Rule, in_layers, is_named, rules, stored_names
from distllm.fsio import read_json
from distllm.machine import available_memory
from distllm.models.heads import HeadName
from distllm.models.init import Model, bare_model
from distllm.units import format_bytes

_PRECISIONS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_TASKS: Mapping[str, HeadName] = {"QUESTION_ANS": "span", "FEATURE_EXTRACTION": "embedding"}
POOLING = "1_Pooling/config.json"
"""Where sentence-transformers stores how token vectors are pooled into one."""


def load_model(folder: Path, *, head: HeadName = "masked_lm") -> Model:
    """Build the model that ``folder`` describes, in evaluation mode in fp32 on the CPU.

    Raises:
        ConfigError: it does not hold a model of a known architecture, or memory does not hold the model.
        CheckpointError: a weight, also one of the head, is missing or of the wrong size.
    """
    shape = shape_of(folder)
    _require_room(shape, folder)
    model = bare_model(shape, head=head)
    missing = load_weights(model, shape, folder)
    if missing:
        raise CheckpointError(
            f"{folder} has no weights for {', '.join(missing)}",
            where=str(folder),
            remedy="use a folder of a model with this head, or train the head with model.init_from",
        )
    return model.eval()


def _require_room(shape: ModelShape, folder: Path) -> None:
    needed, free = shape.num_params * torch.float32.itemsize, available_memory()
    if free is not None and needed > free:
        raise ConfigError(
            f"the model takes {format_bytes(needed)} in fp32, and {format_bytes(free)} of memory are free",
            where=str(folder),
            remedy="free memory, or use a larger machine or a smaller model",
        )


def shape_of(folder: Path) -> ModelShape:
    """Return the shape of the model in ``folder``.

    Raises:
        ConfigError: it holds no config.json, or one that cannot be read.
    """
    config = read_folder(folder)
    pooling = with_file(folder, POOLING) / POOLING
    if pooling.is_file() and read_json(pooling).get("pooling_mode_cls_token"):
        config = replace(config, pooling="cls")
    problems = Problems()
    check_block(config, problems)
    problems.raise_if_any()
    return settle_shape(config, config.vocab_size or 1, config.max_positions or 512)


def stored_head(folder: Path) -> HeadName:
    """Return the head of the encoder in ``folder``, by the class in config.json or an adapter's task type."""
    if is_adapter(folder):
        task = read_json(folder / CONFIG).get("task_type")
        return _TASKS.get(str(task)) or stored_head(base_of(folder))
    classes = read_json(folder / "config.json").get("architectures")
    name = str(classes[0]) if isinstance(classes, list) and classes else ""
    if name.endswith("ForQuestionAnswering"):
        return "span"
    return "embedding" if name.endswith("Model") else "masked_lm"


@torch.no_grad()
def load_weights(model: nn.Module, shape: ModelShape, folder: Path) -> list[str]:
    """Copy the weights of ``folder`` into ``model``; return the names of missing weights of the head.

    Tensors are mapped from the files, joined and copied one after another. For an adapter, the weights of
    its base model are loaded, and the adapter is added to them.

    Raises:
        CheckpointError: a weight is missing or of the wrong size, or a file is damaged.
    """
    if is_adapter(folder):
        base = base_of(folder)
        missing = load_weights(model, shape, base)
        brought = add_adapter(model, shape, base, folder)
        return [name for name in missing if name not in brought]
    model_type = str(read_json(folder / "config.json")["model_type"])
    parameters = dict(model.named_parameters())
    missing = [name for name in parameters if name.startswith("head.") and not is_named(model_type, name)]
    with _Files(folder, model_type, tied=shape.tie_embeddings) as files:
        for rule in rules(model_type, shape, (name for name in parameters if name not in missing)):
            if rule.ours.startswith("head.") and rule.theirs[0] not in files:
                missing.append(rule.ours)
                continue
            _copy(parameters[rule.ours], rule, files)
        _check_unread(in_layers(model_type, files.unread()), folder)
    return missing


def _copy(parameter: nn.Parameter, rule: Rule, files: _Files) -> None:
    weight = rule.join([files.read(name) for name in rule.theirs])
    if weight.shape != parameter.shape:
        raise CheckpointError(
            f"{rule.theirs[0]} makes a weight of size {tuple(weight.shape)}, not {tuple(parameter.shape)}",
            where=str(files.folder),
            remedy="its config.json does not describe its weights: get the folder again",
        )
    parameter.copy_(weight)
    if not parameter.sum().isfinite():  # one pass over memory: a value that is not finite spoils the sum
        raise CheckpointError(
            f"{rule.theirs[0]} holds values that are no finite numbers",
            where=str(files.folder),
            remedy="get the folder again, or save the model before its training went wrong",
        )


def _check_unread(names: list[str], folder: Path) -> None:
    """Refuse weights of layers that do not exist in the model that config.json describes."""
    if names:
        raise CheckpointError(
            f"{len(names)} weights of its layers have no place in the model, such as {min(names)}",
            where=str(folder),
            remedy="its config.json does not describe its weights: get the folder again",
        )


class _Files:
    """The tensors of a folder's safetensors files by name, read on demand."""

    def __init__(self, folder: Path, model_type: str, *, tied: bool) -> None:
        self.folder = folder
        self._model_type = model_type
        self._tied = tied
        self._read = set[str]()

    def __enter__(self) -> _Files:
        paths = weight_files(self.folder)
        if not paths:
            raise CheckpointError(
                f"{self.folder} holds no safetensors files",
                where=str(self.folder),
                remedy="save the model with safetensors; pickled weights are never read",
            )
        try:
            files: list[Any] = [safe_open(path, framework="pt") for path in paths]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"a weight file cannot be read: {error}",
                where=str(self.folder),
                remedy="get the folder again",
            ) from error
        self._home = {name: file for file in files for name in file.keys()}  # noqa: SIM118  # no mapping
        return self

    def __exit__(self, *_: object) -> None:
        self._home.clear()

    def __contains__(self, name: str) -> bool:
        return self._stored(name) is not None

    def read(self, name: str) -> Tensor:
        """Return one tensor."""
        stored = self._stored(name)
        if stored is None:
            raise CheckpointError(
                f"the folder has no tensor {name}",
                where=str(self.folder),
                remedy="its config.json does not describe its weights: get the folder again",
            )
        self._read.add(stored)
        tensor: Tensor = self._home[stored].get_tensor(stored)
        if tensor.dtype not in _PRECISIONS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{name} is stored as {kind}: quantised weights cannot be read",
                where=str(self.folder),
                remedy="load the model with transformers, and save what its dequantize() makes of it",
            )
        return tensor

    def unread(self) -> list[str]:
        """Return the names of the tensors that were not read."""
        return [name for name in self._home if name not in self._read]

    def _stored(self, name: str) -> str | None:
        """Return the name that a tensor has in this folder."""
        names = stored_names(self._model_type, name, tied=self._tied)
        return next((each for each in names if each in self._home), None)
