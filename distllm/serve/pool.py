"""One cache of keys and values for all running requests.

All rows end at the same place: a request that joins later puts its prompt right before that place, and
the positions before its prompt are masked (``starts_B``). So one forward pass advances requests of any
age. Active rows are the first ones; when a request leaves, the last row takes its place. When the end
reaches the capacity, all rows move left over positions that no request needs any more.

Shapes: B requests, T positions, S capacity, K key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distllm.config.shape import ModelShape


class PoolLayer:
    """The keys and values of one layer, as a decoder's block uses them."""

    def __init__(self, pool: Pool, shape: ModelShape) -> None:
        size = (pool.slots, pool.capacity, shape.num_kv_heads, shape.head_dim)
        self._pool = pool
        self.k_BSKD = torch.zeros(size, device=pool.device, dtype=pool.dtype)
        self.v_BSKD = torch.zeros(size, device=pool.device, dtype=pool.dtype)

    def extend(self, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """Append one position to the active rows; return all their positions."""
        rows, end = len(k_BTKD), self._pool.end
        self.k_BSKD[:rows, end : end + 1] = k_BTKD
        self.v_BSKD[:rows, end : end + 1] = v_BTKD
        places = slice(self._pool.first, end + 1)
        return self.k_BSKD[:rows, places], self.v_BSKD[:rows, places]


class Pool:
    """The cache of up to ``slots`` requests of up to ``capacity`` positions each.

    Args:
        shape: the model's.
        slots: most requests at once.
        capacity: S, the model's context.
        device: where the model computes.
        dtype: what it computes in.
    """

    def __init__(
        self, shape: ModelShape, slots: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.slots, self.capacity, self.device, self.dtype = slots, capacity, device, dtype
        self.starts: list[int] = []
        self.end = 0
        self.layers = [PoolLayer(self, shape) for _ in range(shape.num_layers)]

    @property
    def first(self) -> int:
        """The first place that an active row needs."""
        return min(self.starts, default=self.end)

    @property
    def length(self) -> int:
        """Places from the first that an active row needs on."""
        return self.end - self.first

    @property
    def starts_B(self) -> Tensor | None:
        """The first place of each active row, counted from `first`; None: all begin there."""
        if len(set(self.starts)) == 1:
            return None
        return torch.tensor(self.starts, device=self.device) - self.first

    @property
    def rows(self) -> int:
        """Active requests."""
        return len(self.starts)

    def admit(self, past: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Add a row whose prompt has left keys and values (1, T, K, D) in each layer.

        Raises:
            ValueError: all slots are taken, or the prompt fills the capacity.
        """
        length = past[0][0].shape[1]
        if self.rows == self.slots or length >= self.capacity:
            raise ValueError(f"no room for {length} positions in slot {self.rows} of {self.slots}")
        if self.rows == 0:
            self.end = 0
        if length > self.end:
            self._move(length - self.end)
        row, places = self.rows, slice(self.end - length, self.end)
        for layer, (k_1TKD, v_1TKD) in zip(self.layers, past, strict=True):
            layer.k_BSKD[row, places] = k_1TKD[0]
            layer.v_BSKD[row, places] = v_1TKD[0]
        self.starts.append(self.end - length)

    def make_room(self) -> None:
        """Make a place for one more position; every active row must be shorter than the capacity."""
        if self.end == self.capacity:
            self._move(-self.first)

    def advance(self) -> None:
        """Count the position that every layer has just appended."""
        self.end += 1

    def release(self, row: int) -> None:
        """Drop an active row; the last one takes its number."""
        last = self.rows - 1
        if row != last:
            for layer in self.layers:
                layer.k_BSKD[row] = layer.k_BSKD[last]
                layer.v_BSKD[row] = layer.v_BSKD[last]
            self.starts[row] = self.starts[last]
        self.starts.pop()

    def _move(self, by: int) -> None:
        """Move all active rows by so many places, to the left if negative."""
        old, new = slice(self.first, self.end), slice(self.first + by, self.end + by)
        for layer in self.layers:
            for past_BSKD in (layer.k_BSKD, layer.v_BSKD):
                past_BSKD[: self.rows, new] = past_BSKD[: self.rows, old].clone()
        self.starts = [start + by for start in self.starts]
        self.end += by


class Recorder:
    """A cache for a single prompt that keeps each layer's keys and values, for the pool to admit."""

    def __init__(self, shape: ModelShape, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.starts_B: Tensor | None = None
        self.layers = [RecorderLayer() for _ in range(shape.num_layers)]

    @property
    def past(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every layer."""
        return [layer.kept for layer in self.layers]


class RecorderLayer:
    """Keys and values of one layer of one prompt."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor]

    def extend(self, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the keys and values; return them: there is nothing before them."""
        self.kept = (k_BTKD, v_BTKD)
        return self.kept
