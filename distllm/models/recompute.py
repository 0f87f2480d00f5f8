"""Activation checkpointing: keep less of forward, and compute it again in backward.

``full`` keeps only the input of each block (Chen et al. 2016). ``selective`` keeps what matrix
products and attention put out and computes the cheap rest again (Korthikanti et al. 2022): nearly
the memory of the element-wise operations is saved for a few per cent of time.
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
    """Let each block of a stack keep less for backward, in place.

    Blocks are wrapped inside their hooks, so that an engine may gather weights around and inside
    them, in forward and once more in backward. What a block draws at random is drawn alike again.
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
    """Return what forward and its repetition run in: results that forward kept are not computed again."""
    forward, again = create_selective_checkpoint_contexts(_keep)  # type: ignore[no-untyped-call]
    return _Narrowed(forward), _Narrowed(again)


class _Narrowed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows a mode of selective checkpointing products and attention, and nothing else.

    The mode requires the repetition to call what forward called, each operator as often. What an engine
    does around layers to gather weights and to free them differs between the two: it looks ahead.
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
