"""Checks of arguments before a launch; errors give the argument's name and value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def dtype(kernel: str, **tensors: Tensor | None) -> None:
    """All tensors are of one dtype the kernel computes: bf16, fp16 or fp32 (fp64 in the interpreter only).

    Raises:
        ValueError: one is not.
    """
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first_name, first = next(iter(given.items()))
    allowed = FLOATS if first.device.type == "cuda" else (*FLOATS, torch.float64)
    if first.dtype not in allowed:
        raise ValueError(
            f"{kernel}: {first_name} is {first.dtype}; the kernel takes bfloat16, float16 or float32"
        )
    for name, tensor in given.items():
        if tensor.dtype != first.dtype:
            raise ValueError(f"{kernel}: {name} is {tensor.dtype}, but {first_name} is {first.dtype}")


def device(kernel: str, **tensors: Tensor | None) -> None:
    """All tensors are on one device.

    Raises:
        ValueError: one is not.
    """
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first_name, first = next(iter(given.items()))
    for name, tensor in given.items():
        if tensor.device != first.device:
            raise ValueError(f"{kernel}: {name} is on {tensor.device}, but {first_name} is on {first.device}")


def shape(kernel: str, name: str, tensor: Tensor, expected: Sequence[int | None]) -> None:
    """A tensor has the expected sizes, None standing for any.

    Raises:
        ValueError: it has not.
    """
    fits = tensor.dim() == len(expected)
    if not fits or any(
        want is not None and want != size for want, size in zip(expected, tensor.shape, strict=True)
    ):
        text = ", ".join("any" if size is None else str(size) for size in expected)
        raise ValueError(f"{kernel}: {name} has the shape {tuple(tensor.shape)}; expected ({text})")


def contiguous_channels(kernel: str, **tensors: Tensor) -> None:
    """The last axis lies in memory without gaps, so that it can be read 16 bytes at a time.

    Raises:
        ValueError: it does not; ``.contiguous()`` makes it so.
    """
    for name, tensor in tensors.items():
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(
                f"{kernel}: the last axis of {name} has the stride {tensor.stride(-1)}; it must be 1, "
                f"call {name}.contiguous()"
            )


def borders(kernel: str, name: str, borders_E: Tensor, total: int, longest: int) -> None:
    """Document borders are int32, run from 0 to ``total``, and no document is negative or above ``longest``.

    On a CUDA device the values are checked by an assertion on the device, which costs no synchronisation.

    Raises:
        ValueError: they are not.
    """
    if borders_E.dtype != torch.int32 or borders_E.dim() != 1 or len(borders_E) < 2:
        raise ValueError(
            f"{kernel}: {name} must be a 1-dimensional int32 tensor of two borders or more, "
            f"not {borders_E.dtype} of shape {tuple(borders_E.shape)}"
        )
    lengths_E = borders_E.diff()
    if borders_E.device.type == "cuda":
        fit = (
            (lengths_E >= 0).all()
            & (lengths_E <= longest).all()
            & (borders_E[0] == 0)
            & (borders_E[-1] == total)
        )
        torch._assert_async(
            fit, f"{kernel}: {name} must rise from 0 to {total} in steps of at most {longest}"
        )
        return
    if bool((lengths_E < 0).any()):
        raise ValueError(f"{kernel}: {name} decreases: {borders_E.tolist()}")
    if int(borders_E[0]) != 0 or int(borders_E[-1]) != total:
        raise ValueError(
            f"{kernel}: {name} runs from {int(borders_E[0])} to {int(borders_E[-1])}; "
            f"it must run from 0 to the total {total}"
        )
    if int(lengths_E.max()) > longest:
        raise ValueError(
            f"{kernel}: {name} holds a document of {int(lengths_E.max())}, above the stated {longest}"
        )


def targets(kernel: str, targets_N: Tensor, vocabulary: int, ignore_index: int) -> None:
    """Targets are token ids below ``vocabulary``, or ``ignore_index``; checked on the device if there is one.

    Raises:
        ValueError: one is not.
    """
    wrong_N = (targets_N != ignore_index) & ((targets_N < 0) | (targets_N >= vocabulary))
    if targets_N.device.type == "cuda":
        torch._assert_async(~wrong_N.any(), f"{kernel}: a target is neither a token id nor {ignore_index}")
        return
    if bool(wrong_N.any()):
        first = int(wrong_N.nonzero()[0])
        raise ValueError(
            f"{kernel}: targets[{first}] is {int(targets_N[first])}; the vocabulary has {vocabulary} tokens"
        )
