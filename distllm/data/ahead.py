"""Fetching shards of a mirrored dataset before the reader needs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

ShardUse: TypeAlias = tuple[int, int, int]
"""Position of the first step that needs a shard, its source, its number in the source."""


class ShardsAhead:
    """Fetches shards in the order of their first use, a few ahead of the reader.

    One thread fetches one shard at a time. Errors are not reported here: the reader fetches the
    shard again when it needs it, and raises the error if it persists.

    Args:
        fetch: makes a shard, given by source and number, a local file.
        most: how many shards that are not needed yet may be asked for; so many fit in the mirror
            beside those in use.
    """

    def __init__(self, fetch: Callable[[int, int], object], most: int) -> None:
        self._fetch, self._most = fetch, most
        self._coming: list[ShardUse] = []
        self._asked = set[tuple[int, int]]()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="distllm-shards")

    def plan(self, uses: Sequence[ShardUse]) -> None:
        """Replace the plan by these shards."""
        self._coming = sorted(uses)
        self._asked.clear()

    def advance(self, position: int) -> None:
        """Ask for the next shards after the step at ``position``, which the reader fetches itself."""
        self._coming = [use for use in self._coming if use[0] > position]
        for _, source, shard in self._coming[: self._most]:
            if (source, shard) not in self._asked:
                self._asked.add((source, shard))
                self._thread.submit(self._fetch, source, shard)

    def close(self) -> None:
        """Drop the plan, and wait for the shard that is being fetched."""
        self._thread.shutdown(wait=True, cancel_futures=True)
