"""The keys and values of past positions, kept so that generating a token costs one position.

Shapes: B rows, T new positions, S capacity, N sources, L their positions, K key/value heads, D head width,
C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distllm.config.shape import ModelShape


class LayerCache:
    """Preallocated keys and values of one layer, and those of the source."""

    def __init__(
        self, shape: ModelShape, num_rows: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        size = (num_rows, capacity, shape.num_kv_heads, shape.head_dim)
        self._k_BSKD = torch.zeros(size, device=device, dtype=dtype)
        self._v_BSKD = torch.zeros(size, device=device, dtype=dtype)
        self.length = 0
        self.source: tuple[Tensor, Tensor] | None = None

    def extend(self, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """Append T positions to the first rows; return the keys and values of all their positions so far.

        Raises:
            ValueError: the capacity is exceeded.
        """
        rows, end = len(k_BTKD), self.length + k_BTKD.shape[1]
        if end > self._k_BSKD.shape[1]:
            raise ValueError(f"{end} positions exceed the cache's {self._k_BSKD.shape[1]}")
        self._k_BSKD[:rows, self.length : end] = k_BTKD
        self._v_BSKD[:rows, self.length : end] = v_BTKD
        self.length = end
        return self._k_BSKD[:rows, :end], self._v_BSKD[:rows, :end]

    def reorder(self, rows_B: Tensor) -> None:
        """Let row i go on from what row ``rows_B[i]`` held; both have the same source."""
        for past_BSKD in (self._k_BSKD, self._v_BSKD):
            past_BSKD[: len(rows_B), : self.length] = past_BSKD[rows_B, : self.length]


class KVCache:
    """One `LayerCache` per decoder layer, for rows that all end at the same position.

    Args:
        shape: the model's.
        num_rows: B, most sequences generated together.
        capacity: S, the longest they may become.
        device: where the model computes.
        dtype: what it computes in.
        starts_B: the first place of each row that holds a token, where shorter rows are filled up at
            the front; None: all begin at the first.

    Attributes:
        source: of an encoder-decoder, the encoder's output hidden_NLC, and which of its positions are seen.
    """

    def __init__(
        self,
        shape: ModelShape,
        num_rows: int,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
        starts_B: Tensor | None = None,
    ) -> None:
        self.layers = [LayerCache(shape, num_rows, capacity, device, dtype) for _ in range(shape.num_layers)]
        self.capacity = capacity
        self.starts_B = starts_B
        self.source: tuple[Tensor, Tensor | None] | None = None

    @property
    def length(self) -> int:
        """Positions that every row holds."""
        return self.layers[0].length

    def reorder(self, rows_B: Tensor) -> None:
        """Let row i go on from what row ``rows_B[i]`` held, as beam search does within one source.

        There may be more rows than before.
        """
        if self.starts_B is not None:
            self.starts_B = self.starts_B[rows_B]
        for layer in self.layers:
            layer.reorder(rows_B)
