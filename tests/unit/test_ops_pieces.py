"""The work list of attention: borders of segments, pairs of them, and what a window leaves."""

import pytest
import torch

from distllm.ops.pieces import Piece, cross_pieces, cut, self_pieces, whole_rows

CPU = torch.device("cpu")


def test_each_segment_of_each_row_is_a_piece():
    segments = torch.tensor([[0, 0, 1, 1], [3, 3, 3, 3], [0, 1, 2, 2]])
    assert self_pieces(segments).tolist() == [
        [0, 2, 0, 2],
        [2, 4, 2, 4],
        [4, 8, 4, 8],
        [8, 9, 8, 9],
        [9, 10, 9, 10],
        [10, 12, 10, 12],
    ]


def test_the_same_number_in_two_rows_is_two_segments():
    assert self_pieces(torch.zeros(2, 3)).tolist() == [[0, 3, 0, 3], [3, 6, 3, 6]]


def test_a_target_segment_is_paired_with_the_source_segment_of_its_number():
    targets = torch.tensor([[0, 0, 1], [1, 2, 4]], dtype=torch.int32)
    sources = torch.tensor([[0, 1, 1, 1], [0, 1, 4, 4]])
    assert cross_pieces(targets, sources).tolist() == [
        [0, 2, 0, 1],
        [2, 3, 1, 4],
        [3, 4, 5, 6],
        [4, 5, 6, 6],
        [5, 6, 6, 8],
    ]


@pytest.mark.parametrize(
    ("segments", "whole"),
    [
        ([[0, 0], [0, 0]], True),
        ([[0, 0], [1, 1]], True),
        ([[0, 1], [0, 0]], False),
        ([[0, 1], [0, 1]], False),
    ],
)
def test_rows_without_borders_are_one_batch(segments, whole):
    assert whole_rows(self_pieces(torch.tensor(segments)), 2, 2, 2) == whole


def test_rows_whose_source_has_borders_are_no_batch():
    pieces = cross_pieces(torch.zeros(2, 2), torch.tensor([[0, 0, 0], [0, 0, 1]]))
    assert not whole_rows(pieces, 2, 2, 3)
    assert whole_rows(cross_pieces(torch.zeros(2, 2), torch.zeros(2, 3)), 2, 2, 3)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 3, 64, 100, 500])
def test_cutting_keeps_exactly_what_a_window_shows(causal, window):
    pieces = [[0, 130, 0, 130], [130, 131, 130, 131], [131, 200, 131, 200]]
    shown = torch.zeros(200, 200, dtype=torch.int64)
    for piece in cut(pieces, causal, window):
        seen = piece.visible(causal, window, CPU)
        place = shown[piece.q0 : piece.q1, piece.k0 : piece.k1]
        place += 1 if seen is None else seen.long()
    away = torch.arange(200) - torch.arange(200)[:, None]
    expected = away.abs() < window
    if causal:
        expected &= away <= 0
    document = torch.bucketize(torch.arange(200), torch.tensor([130, 131]), right=True)
    expected &= document == document[:, None]
    assert torch.equal(shown, expected.long())


@pytest.mark.parametrize(
    ("piece", "causal", "window", "masked"),
    [
        (Piece(0, 4, 0, 4), False, 0, False),
        (Piece(0, 4, 0, 4), True, 0, True),
        (Piece(3, 4, 0, 4), True, 0, False),
        (Piece(0, 4, 0, 4), False, 4, False),
        (Piece(0, 4, 0, 4), False, 3, True),
        (Piece(3, 4, 0, 4), True, 4, False),
        (Piece(3, 4, 0, 4), True, 3, True),
    ],
)
def test_no_mask_is_made_where_all_is_seen(piece, causal, window, masked):
    assert (piece.visible(causal, window, CPU) is not None) == masked
