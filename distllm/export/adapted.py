"""Adapters written by `peft`: merged into the weights of a model, or loaded as adapters to train further.

Shapes: C inputs, I outputs of one of their matrices, R rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from distllm.config.huggingface import model_type_of
from distllm.config.peft import WEIGHTS, adapted_modules, read_adapter, whole_weights
from distllm.config.shape import ModelShape
from distllm.errors import CheckpointError
from distllm.export.names import Rule, is_named, rules, stored_names
from distllm.models.lora import AdaptedLinear, adapters_of, learned_beside


@torch.no_grad()
def add_adapter(model: nn.Module, shape: ModelShape, base: Path, folder: Path) -> list[str]:
    """Merge an adapter into a model, in place, and replace the weights that the adapter holds whole.

    Args:
        model: with the weights of ``base``.
        shape: its dimensions.
        base: the folder of the model that the adapter belongs to.
        folder: the adapter's.

    Returns:
        The names of the weights that were replaced.

    Raises:
        ConfigError: the kind of adapter is not supported.
        CheckpointError: one of its weights does not belong to the model, has the wrong size or is damaged.
    """
    parameters = dict(model.named_parameters())
    source = _Source(folder, base, shape)
    replaced = []
    for rule in source.rules(parameters):
        weight = parameters[rule.ours]
        parts = torch.split(weight, list(rule.rows)) if rule.rows and not rule.experts else (weight,)
        for theirs, rows_IC in zip(rule.theirs, parts, strict=False):
            for module, a_RC, b_IR in source.adapter(theirs):
                source.check_size(module, (len(b_IR), a_RC.shape[1]), rows_IC.shape)
                rows_IC += source.scale(module, len(a_RC)) * (b_IR @ a_RC)
        if (whole := source.whole(rule)) is not None:
            source.check_size(rule.ours, whole.shape, weight.shape)
            weight.copy_(whole)
            replaced.append(rule.ours)
    source.check_unread()
    return replaced


@torch.no_grad()
def begin_adapters(model: nn.Module, shape: ModelShape, base: Path, folder: Path) -> None:
    """Load a folder's values into the adapters of a model and the head that is trained with them.

    Args:
        model: with adapters of the folder's rank, at its projections.
        shape: the model's dimensions.
        base: the folder of the model that the adapter belongs to.
        folder: the adapter's.

    Raises:
        ConfigError: the kind of adapter is not supported.
        CheckpointError: it lacks a projection that is to be trained, or has one that is not.
    """
    adapters, beside = adapters_of(model), learned_beside(model)
    source = _Source(folder, base, shape)
    for rule in source.rules(f"{name}.weight" for name in adapters):
        ours = adapters[rule.ours.removesuffix(".weight")]
        parts = list(ours.rows)
        held = [[name] for name in parts] if len(rule.theirs) == len(parts) else [parts]
        for theirs, names in zip(rule.theirs, held, strict=True):
            wanted = [name for name in names if name in ours.adapted]
            pair = next(source.adapter(theirs), None)
            if wanted and pair is None:
                raise source.refusal(f"it has none of {theirs.removesuffix('.weight')}")
            if pair is not None and wanted:
                _begin(ours, names, wanted, source, pair)
    for rule in source.rules(beside):
        if (whole := source.whole(rule)) is not None:
            source.check_size(rule.ours, whole.shape, beside[rule.ours].shape)
            beside[rule.ours].copy_(whole)
    source.check_unread()


def _begin(
    ours: AdaptedLinear, names: Sequence[str], wanted: Sequence[str], source: _Source, pair: _Pair
) -> None:
    """Copy one peft adapter of the projections ``names`` into our adapters of those that are ``wanted``.

    For several projections (GPT-2's ``c_attn``), our export stacks their ``a`` matrices and puts their ``b``
    matrices on the diagonal. In an adapter of peft's own they share ``a``: each of ours gets a copy of it.
    """
    module, a_RC, b_IR = pair
    rank, width = ours.adapter(wanted[0])[0].shape
    sizes = [ours.rows[name] for name in names]
    stacked = len(wanted) > 1 and len(a_RC) == rank * len(wanted)
    source.check_size(module, a_RC.shape, (rank * len(wanted) if stacked else rank, width))
    source.check_size(module, b_IR.shape, (sum(sizes), len(a_RC)))
    rows = dict(zip(names, torch.split(b_IR, sizes), strict=True))
    for number, name in enumerate(wanted):
        block = slice(number * rank, (number + 1) * rank) if stacked else slice(None)
        own_RC, own_IR = ours.adapter(name)
        own_RC.copy_(a_RC[block])
        own_IR.copy_(rows[name][:, block])


_Pair = tuple[str, Tensor, Tensor]
"""The name of the adapted module in transformers, a_RC and b_IR."""


class _Source:
    """The tensors of an adapter's folder, and which of them were used."""

    def __init__(self, folder: Path, base: Path, shape: ModelShape) -> None:
        self._adapter = read_adapter(folder)
        self._file = folder / WEIGHTS
        self._model_type, self._shape = model_type_of(base), shape
        try:
            self._tensors = load_file(self._file)
        except (SafetensorError, OSError) as error:
            raise self.refusal(f"its file cannot be read: {error}") from error
        if strange := [name for name, tensor in self._tensors.items() if not tensor.isfinite().all()]:
            raise self.refusal(f"{strange[0]} holds values that are no finite numbers")
        self._modules = adapted_modules(self._tensors)
        self._whole = whole_weights(self._tensors)
        self._unread = set(self._tensors)

    def rules(self, names: Iterable[str]) -> list[Rule]:
        """Return the rules of our weights ``names``, except heads that the architecture does not have."""
        known = (name for name in names if not name.startswith("head.") or is_named(self._model_type, name))
        return rules(self._model_type, self._shape, known)

    def scale(self, module: str, rank: int) -> float:
        """Return the factor of an adapter's product."""
        return self._adapter.scale(module, rank)

    def adapter(self, weight: str) -> Iterator[_Pair]:
        """Yield the adapter of a weight, named as in transformers, if there is one."""
        for name in stored_names(self._model_type, weight, tied=False):
            module = name.removesuffix(".weight")
            pair = self._modules.get(module, ())
            if pair and self._unread.issuperset(pair):
                self._unread.difference_update(pair)
                a_RC, b_IR = (self._tensors[each].float() for each in pair)
                yield module, a_RC, b_IR
                return

    def whole(self, rule: Rule) -> Tensor | None:
        """Return our weight if the folder stores it whole, else None."""
        stored = [
            self._whole[name]
            for theirs in rule.theirs
            for name in dict.fromkeys(stored_names(self._model_type, theirs, tied=False))
            if self._whole.get(name) in self._unread
        ]
        self._unread.difference_update(stored)
        return rule.join([self._tensors[name] for name in stored]) if stored else None

    def check_size(self, name: str, found: Sequence[int], wanted: Sequence[int]) -> None:
        """Refuse an adapter that was made for another model."""
        if tuple(found) != tuple(wanted):
            raise self.refusal(f"its size of {name} is {tuple(found)}, not {tuple(wanted)}")

    def check_unread(self) -> None:
        """Refuse weights that were not used: without them the model would compute something else."""
        if self._unread:
            raise self.refusal(f"{min(self._unread)} has no place in it")

    def refusal(self, what: str) -> CheckpointError:
        """Return the error of an adapter that cannot be used."""
        return CheckpointError(
            f"the adapter of {self._file.parent} does not fit the model: {what}",
            where=str(self._file),
            remedy="name the model that it was trained on, or get the folder again; or merge it with peft: "
            "model.merge_and_unload().save_pretrained(DIR), and name DIR",
        )
