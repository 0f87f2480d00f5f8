"""Low-rank adapters: small matrices that are trained while the model's own are frozen (Hu et al. 2021).

An adapter belongs to one projection. Where a matrix holds several (``qkv_proj``), each of them that is
adapted has an adapter of its own, which is what `peft` does with models that keep them apart.

Shapes: C inputs, I rows of one projection, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distllm.config.schema_lora import LoraConfig
from distllm.config.shape import ModelShape
from distllm.models.heads import SpanHead
from distllm.seeds import derive_seed

_SUFFIXES = ("lora_A", "lora_B")


class AdaptedLinear(nn.Linear):
    """A frozen matrix and the adapters of its projections.

    Adapters are parameters of this module, not of one below it, so that ZeRO-3 gathers them with it.

    Args:
        base: the matrix; its weight and bias are taken over and frozen.
        rows: rows of each projection it holds, in order.
        config: rank, scale, dropout, and which projections are adapted.
    """

    def __init__(self, base: nn.Linear, rows: Mapping[str, int], config: LoraConfig) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.requires_grad_(False)
        self.rows = dict(rows)
        self.adapted = [name for name in rows if name in config.targets]
        self.scale, self.dropout = config.alpha / config.rank, config.dropout
        for name in self.adapted:
            sizes = (config.rank, base.in_features), (rows[name], config.rank)
            for suffix, size in zip(_SUFFIXES, sizes, strict=True):
                empty = torch.empty(size, dtype=base.weight.dtype, device=base.weight.device)
                self.register_parameter(f"{name}_{suffix}", nn.Parameter(empty))

    def adapter(self, name: str) -> tuple[Tensor, Tensor]:
        """Return a_RC and b_IR of a projection that is adapted."""
        return getattr(self, f"{name}_{_SUFFIXES[0]}"), getattr(self, f"{name}_{_SUFFIXES[1]}")

    def forward(self, x: Tensor) -> Tensor:
        """Return the matrix's output, with b a x added to each adapted projection."""
        parts = list(torch.split(super().forward(x), list(self.rows.values()), dim=-1))
        read = F.dropout(x, self.dropout) if self.training and self.dropout else x
        for place, name in enumerate(self.rows):
            if name in self.adapted:
                a_RC, b_IR = self.adapter(name)
                parts[place] = parts[place] + F.linear(F.linear(read, a_RC), b_IR) * self.scale
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return the plain matrix that computes the same in evaluation; this module's weight becomes it."""
        for name, rows_IC in zip(self.rows, torch.split(self.weight, list(self.rows.values())), strict=True):
            if name in self.adapted:
                a_RC, b_IR = self.adapter(name)
                rows_IC += self.scale * (b_IR @ a_RC)
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain.requires_grad_(True)


def add_adapters(model: nn.Module, shape: ModelShape, config: LoraConfig, seed: int) -> None:
    """Freeze a model, and give each projection named in ``config.targets`` an adapter, in place.

    The head of `extractive_qa` is new, so it is trained with the adapters. Adapters begin
    with ``b`` zero, so at first the model computes the same as without them.

    Args:
        model: with the weights to begin with.
        shape: its dimensions.
        config: the adapters; the rank is at least 1.
        seed: root of the random streams of ``a``, one for each.

    Raises:
        ValueError: the model has none of the projections.
    """
    model.requires_grad_(False)
    for head in (module for module in model.modules() if isinstance(module, SpanHead)):
        head.requires_grad_(True)
    added = 0
    for path, module in list(model.named_modules()):
        rows = shape.rows_of(path.rpartition(".")[2])
        if isinstance(module, nn.Linear) and set(rows) & set(config.targets):
            adapted = AdaptedLinear(module, rows, config)
            _initialize(adapted, path, seed)
            _put(model, path, adapted)
            added += 1
    if not added:
        raise ValueError(f"the model has none of {config.targets}")


@torch.no_grad()
def _initialize(adapted: AdaptedLinear, path: str, seed: int) -> None:
    """Draw ``a`` uniformly within one over the root of its inputs, and set ``b`` to zero."""
    bound = 1.0 / math.sqrt(adapted.in_features)
    for name in adapted.adapted:
        a_RC, b_IR = adapted.adapter(name)
        generator = torch.Generator().manual_seed(derive_seed(seed, "lora", f"{path}.{name}"))
        a_RC.copy_((torch.rand(a_RC.shape, generator=generator) * 2 - 1) * bound)
        b_IR.zero_()


def merge_adapters(model: nn.Module) -> None:
    """Add every adapter to its matrix, in place: the model has its plain modules again."""
    for path, module in list(model.named_modules()):
        if isinstance(module, AdaptedLinear):
            _put(model, path, module.merged())
    model.requires_grad_(True)


def adapters_of(model: nn.Module) -> dict[str, AdaptedLinear]:
    """Return the adapted matrices of a model by name."""
    return {path: module for path, module in model.named_modules() if isinstance(module, AdaptedLinear)}


def learned_beside(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights that are trained along with adapters, by name; none without adapters."""
    own = {id(weight) for adapted in adapters_of(model).values() for weight in adapted.parameters()}
    named = model.named_parameters() if own else ()
    return {name: weight for name, weight in named if weight.requires_grad and id(weight) not in own}


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
