"""A fingerprint of a rank's weights: equal for equal replicas, different after one changed bit."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import xxhash
from torch import Tensor

_BITS_OF = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(tensors: Iterable[Tensor]) -> int:
    """Return a 64-bit fingerprint of the content of ``tensors``, in their order.

    The bits of each tensor are summed as integers, on its device and modulo 2**64, and the sums are hashed. A
    single changed bit always changes the sum; several cancel only if they change it by opposite amounts.
    """
    with torch.no_grad():
        sums = [tensor.view(_BITS_OF[tensor.element_size()]).sum(dtype=torch.int64) for tensor in tensors]
    digest = xxhash.xxh3_64()
    if sums:
        digest.update(torch.stack(sums).cpu().numpy().tobytes())
    return digest.intdigest()
