"""Activation checkpointing: keep less of the forward pass, and compute it again in the backward pass.

``full`` keeps only the input of each block (Chen et al. 2016). ``selective`` keeps the outputs of
matrix products and attention and computes the rest again, which is cheap (Korthikanti et al. 2022):
it saves the memory of element-wise operations for a few per cent of time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from distllm.models.layers import Block

_PRODUCTS = ("mm", "addmm", "bmm", "_grouped_mm")
# torch names its kernels after attention, `distllm.ops.document_attention` its own after documents.
_ATTENTION = ("attention", "_documents")


def recompute_blocks(model: nn.Module, mode: Literal["none", "selective", "full"]) -> None:
    """Make each block of a stack keep less for the backward pass, in place.

    Blocks are wrapped inside their hooks, so that an engine can gather weights around and inside
    them, in the forward pass and again in the backward pass. Random numbers of a block are the same
    both times.
    """
    if mode == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = _keeping_contexts
    for module in model.modules():
        if isinstance(module, Block):
            random = bool(module.dropout or module.layer_drop)
            module.forward = _recomputed(  # type: ignore[method-assign]
                module.forward, {**options, "preserve_rng_state": random}
            )


def _recomputed(forward: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def wrapped(*inputs: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **named)
        return checkpoint(forward, *inputs, **options, **named)

    return wrapped


def _keeping_contexts() -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """Return contexts for the forward pass and its repetition, which does not recompute kept results."""
    forward, again = create_selective_checkpoint_contexts(_keep)  # type: ignore[no-untyped-call]
    return _Narrowed(forward), _Narrowed(again)


class _Narrowed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Passes only products and attention to a mode of selective checkpointing.

    The mode requires the repetition to call the same operators equally often. But an engine that gathers
    and frees weights around layers, and prefetches them, calls other operators in the repetition.
    """

    def __init__(self, mode: TorchDispatchMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._mode = mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _is_kept(func):
            return self._mode.__torch_dispatch__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def _keep(context: Any, operator: Any, *inputs: Any, **named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE


@functools.cache
def _is_kept(operator: Any) -> bool:
    """Whether ``operator`` is a product, or attention, whichever kernel computes it."""
    name = operator.name().partition("::")[2].partition(".")[0]
    attention = any(part in name for part in _ATTENTION) and not name.endswith("backward")
    return name in _PRODUCTS or attention
