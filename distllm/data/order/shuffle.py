"""The order of one source's samples within each of its epochs, and its inverse.

Without a window all samples of an epoch are permuted. With a window of n shards, the shards are
permuted first; then every n of them, in that order, form a window inside which samples are permuted.
With a window, a reader needs only n shards at a time, which bounds a cache.

Shapes: N places in an epoch or samples, K shards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distllm.data.order.permutation import permute, unpermute
from distllm.seeds import derive_seed

_LAYOUTS_KEPT = 2


@dataclass(frozen=True, slots=True)
class SourceSamples:
    """A source's name, and how many samples begin in each of its shards."""

    name: str
    shards: tuple[int, ...]

    @property
    def total(self) -> int:
        """Samples of one epoch."""
        return sum(self.shards)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Shards of one epoch in their order: which they are, and where each and each window begins."""

    order_K: NDArray[np.int64]
    starts_K: NDArray[np.int64]
    bounds_W: NDArray[np.int64]


class EpochShuffle:
    """Permutes the samples of one source, differently in every epoch.

    Args:
        samples: the source.
        seed: root of the order.
        path: names under which its keys are derived from ``seed``.
        window_shards: shards of a window; None permutes all samples.
    """

    def __init__(
        self, samples: SourceSamples, *, seed: int, path: tuple[str, ...], window_shards: int | None
    ) -> None:
        self.total = samples.total
        self._seed, self._path = seed, path
        self._window = window_shards
        if window_shards is not None:
            self._counts_K = np.array(samples.shards, dtype=np.int64)
            self._first_K = np.cumsum(self._counts_K) - self._counts_K
        self._layouts: dict[int, _Layout] = {}

    def sample_at(self, epoch: int, place_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the samples at these places, each in ``[0, total)``, of an epoch."""
        if self._window is None:
            return permute(place_N, self.total, self._key(epoch))
        layout = self._layout(epoch)
        window_N = np.searchsorted(layout.bounds_W, place_N, side="right") - 1
        moved_N = np.empty_like(place_N)
        for window in np.unique(window_N).tolist():
            chosen_N = window_N == window
            first, size = self._bounds(layout, window)
            moved_N[chosen_N] = first + permute(place_N[chosen_N] - first, size, self._key(epoch, window))
        turn_N = np.searchsorted(layout.starts_K, moved_N, side="right") - 1
        return self._first_K[layout.order_K[turn_N]] + moved_N - layout.starts_K[turn_N]

    def place_of(self, epoch: int, sample: int) -> int:
        """Return the place of ``sample`` in an epoch."""
        if self._window is None:
            return int(unpermute(np.array([sample]), self.total, self._key(epoch))[0])
        layout = self._layout(epoch)
        shard = int(np.searchsorted(self._first_K, sample, side="right")) - 1
        turn = int(np.flatnonzero(layout.order_K == shard)[0])
        moved = int(layout.starts_K[turn]) + sample - int(self._first_K[shard])
        window = turn // self._window
        first, size = self._bounds(layout, window)
        return first + int(unpermute(np.array([moved - first]), size, self._key(epoch, window))[0])

    def _layout(self, epoch: int) -> _Layout:
        if epoch not in self._layouts:
            shards = self._counts_K.size
            order_K = permute(np.arange(shards), shards, self._key(epoch, "shards"))
            ends_K = np.cumsum(self._counts_K[order_K])
            starts_K = ends_K - self._counts_K[order_K]
            if len(self._layouts) == _LAYOUTS_KEPT:
                del self._layouts[next(iter(self._layouts))]
            self._layouts[epoch] = _Layout(
                order_K, starts_K, np.append(starts_K[:: self._window], ends_K[-1])
            )
        return self._layouts[epoch]

    def _bounds(self, layout: _Layout, window: int) -> tuple[int, int]:
        first, following = layout.bounds_W[window : window + 2].tolist()
        return first, following - first

    def _key(self, epoch: int, *more: str | int) -> int:
        return derive_seed(self._seed, *self._path, epoch, *more)
