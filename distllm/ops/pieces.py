"""Which queries attend to which keys, as ranges of flattened positions: attention's work list.

A piece is one document (or one target segment and its source), or a part of one where a window
makes most of its scores invisible. Pieces are data, not shapes: a compiled model sees them as one
tensor, and is compiled once for all batches.

Shapes: B rows, T positions, S keys, H heads, D head width, P pieces; X = B whole rows or 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

_CHUNK = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """Queries ``q0`` to ``q1`` attend to keys ``k0`` to ``k1``."""

    q0: int
    q1: int
    k0: int
    k1: int

    @property
    def shift(self) -> int:
        """The distance from the first query to the first key."""
        return self.k0 - self.q0

    def visible(self, causal: bool, window: int, device: torch.device) -> Tensor | None:
        """Return visible_LM of queries and keys, None if all see all."""
        rows, columns = self.q1 - self.q0, self.k1 - self.k0
        farthest_ahead, farthest_behind = columns - 1 + self.shift, rows - 1 - self.shift
        hides_ahead = causal and farthest_ahead > 0
        if not hides_ahead and not (window and max(farthest_ahead, farthest_behind) >= window):
            return None
        j_M = torch.arange(columns, device=device)
        distance_LM = j_M + self.shift - torch.arange(rows, device=device)[:, None]
        visible_LM = distance_LM <= 0 if causal else torch.ones_like(distance_LM, dtype=torch.bool)
        return visible_LM & (distance_LM.abs() < window) if window else visible_LM


def self_pieces(segments_BT: Tensor) -> Tensor:
    """Return pieces_P4: each segment of each row attends to itself. Segments never decrease along a row."""
    starts = _starts(segments_BT)
    borders_E = torch.cat([starts, starts.new_tensor([segments_BT.numel()])])
    ends = torch.stack([borders_E[:-1], borders_E[1:]], dim=1)
    return torch.cat([ends, ends], dim=1)


def cross_pieces(segments_BT: Tensor, source_BS: Tensor) -> Tensor:
    """Return pieces_P4: each segment of the queries attends to the source's segment of the same number."""
    length = source_BS.shape[1]
    queries_P4 = self_pieces(segments_BT)
    rows_P, wanted_P = queries_P4[:, 0] // segments_BT.shape[1], segments_BT.flatten()[queries_P4[:, 0]]
    source_PS = source_BS.contiguous()[rows_P]
    first_P = torch.searchsorted(source_PS, wanted_P[:, None].to(source_PS.dtype))[:, 0]
    last_P = torch.searchsorted(source_PS, wanted_P[:, None].to(source_PS.dtype), right=True)[:, 0]
    keys = torch.stack([first_P, last_P], dim=1) + (rows_P * length)[:, None]
    return torch.cat([queries_P4[:, :2], keys], dim=1)


def whole_rows(pieces_P4: Tensor, num_rows: int, length: int, num_keys: int) -> bool:
    """Whether each piece is a row that attends to a whole row: then all are computed as one batch."""
    if len(pieces_P4) != num_rows:
        return False
    row = torch.arange(num_rows)[:, None]
    rows = torch.cat([row * length, (row + 1) * length, row * num_keys, (row + 1) * num_keys], dim=1)
    return torch.equal(pieces_P4, rows)


def cut(pieces: list[list[int]], causal: bool, window: int) -> list[Piece]:
    """Cut pieces so that keys which a window hides from all their queries are left out."""
    if not window:
        return [Piece(*piece) for piece in pieces]
    chunk, behind, ahead = max(window, _CHUNK), window - 1, 0 if causal else window - 1
    return [
        Piece(start, stop, max(k0, start - behind), min(k1, stop + ahead))
        for q0, q1, k0, k1 in pieces
        for start, stop in pairwise([*range(q0, q1, chunk), q1])
    ]


def _starts(segments_BT: Tensor) -> Tensor:
    opens_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    opens_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return opens_BT.flatten().nonzero().flatten()
