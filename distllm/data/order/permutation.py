"""Permutations of any range in constant memory.

A keyed Feistel network permutes the smallest power-of-two range that holds the samples; values
outside are walked along their cycle until they fall inside (Black and Rogaway, "Ciphers with
Arbitrary Finite Domains", 2002). The range is less than twice the samples, so the walk is short.

Shapes: N positions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from distllm.seeds import derive_seed

_ROUNDS = 8
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)
_LARGEST = 2**62


def permute(index_N: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """Return where the permutation ``key`` of ``range(size)`` sends each index.

    Args:
        index_N: indices in ``[0, size)``.
        size: number of elements, 1 to 2**62.
        key: which permutation, 0 to 2**63 - 1.

    Raises:
        ValueError: ``size`` or an index is out of range.
    """
    return _walk(_feistel, index_N, size, key)


def unpermute(image_N: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """Return the indices that the permutation ``key`` of ``range(size)`` sends to ``image_N``.

    Raises:
        ValueError: ``size`` or an image is out of range.
    """
    return _walk(_inverse_feistel, image_N, size, key)


def _walk(
    step: Callable[[NDArray[np.uint64], int, tuple[np.uint64, ...]], NDArray[np.uint64]],
    index_N: NDArray[np.int64],
    size: int,
    key: int,
) -> NDArray[np.int64]:
    """Take steps of a permutation of a power-of-two range until all values are below ``size``."""
    if not 1 <= size <= _LARGEST:
        raise ValueError(f"cannot permute {size} elements")
    if index_N.size and (index_N.min() < 0 or index_N.max() >= size):
        raise ValueError(f"an index is outside [0, {size})")
    bits, keys = (size - 1).bit_length(), _round_keys(key)
    walking_N = step(index_N.astype(np.uint64), bits, keys)
    while (outside_N := walking_N >= np.uint64(size)).any():
        walking_N[outside_N] = step(walking_N[outside_N], bits, keys)
    return walking_N.astype(np.int64)


@lru_cache(maxsize=1024)
def _round_keys(key: int) -> tuple[np.uint64, ...]:
    return tuple(np.uint64(derive_seed(key, "feistel", round_)) for round_ in range(_ROUNDS))


def _feistel(value_N: NDArray[np.uint64], bits: int, keys: tuple[np.uint64, ...]) -> NDArray[np.uint64]:
    """Permute ``range(2**bits)``: each round mixes one part of the bits into the other and swaps."""
    low_bits, high_bits = bits // 2, bits - bits // 2
    low_N = value_N & _mask(low_bits)
    high_N = value_N >> np.uint64(low_bits)
    for key in keys:
        low_N, high_N = high_N, low_N ^ (_mix(high_N ^ key) & _mask(low_bits))
        low_bits, high_bits = high_bits, low_bits
    return (high_N << np.uint64(low_bits)) | low_N


def _inverse_feistel(
    value_N: NDArray[np.uint64], bits: int, keys: tuple[np.uint64, ...]
) -> NDArray[np.uint64]:
    """Undo ``_feistel``: after an even number of rounds both widths are the original ones."""
    low_bits, high_bits = bits // 2, bits - bits // 2
    low_N = value_N & _mask(low_bits)
    high_N = value_N >> np.uint64(low_bits)
    for key in reversed(keys):
        low_bits, high_bits = high_bits, low_bits
        low_N, high_N = high_N ^ (_mix(low_N ^ key) & _mask(low_bits)), low_N
    return (high_N << np.uint64(low_bits)) | low_N


@lru_cache(maxsize=64)
def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)


def _mix(value_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter 64 bits over 64 bits (the finaliser of SplitMix64; products are meant to wrap)."""
    value_N = (value_N ^ (value_N >> _SHIFT_1)) * _MIX_1
    value_N = (value_N ^ (value_N >> _SHIFT_2)) * _MIX_2
    return value_N ^ (value_N >> _SHIFT_3)
