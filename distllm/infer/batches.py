"""Batches of texts of similar length, which are computed together with little padding."""

from __future__ import annotations

from collections.abc import Sequence


def by_length(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Return the numbers of the texts of each batch, at most ``most``, the shortest texts first."""
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    return [order[at : at + most] for at in range(0, len(order), most)]
