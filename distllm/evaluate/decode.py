"""Greedy decoding of many sources, for measures of generated text.

Shapes: B rows, S source positions, T positions, V ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distllm.data.examples.split import laid_out
from distllm.models.cache import KVCache

Ids = NDArray[np.int64]


@torch.no_grad()
def translate_greedily(
    model: nn.Module, sources: Sequence[Ids], *, vocab_size: int, eot_id: int, max_tokens: int
) -> list[list[int]]:
    """Return what an encoder-decoder says to each source (which ends with EOT), up to EOT.

    The rows are decoded together; one that has ended goes on unheard.
    """
    shaped: Any = model
    width = max(source.size for source in sources) + 1  # a column of padding, as in training
    arrays = laid_out([[source] for source in sources], width, eot_id)
    source_BS, positions_BS, segments_BS = (torch.from_numpy(array) for array in arrays)
    first = next(model.parameters())
    cache = KVCache(shaped.shape, len(sources), max_tokens, first.device, first.dtype)
    token_B1 = torch.full((len(sources), 1), eot_id, dtype=torch.int32)
    said = list[Tensor]()
    ended_B = torch.zeros(len(sources), dtype=torch.bool)
    for step in range(max_tokens):
        place_B1 = torch.full_like(token_B1, step)
        logits_B1V = model(source_BS, positions_BS, segments_BS, token_B1, place_B1, None, None, cache)
        token_B1 = logits_B1V[:, :, :vocab_size].argmax(-1).to(torch.int32)
        said.append(token_B1[:, 0])
        ended_B |= token_B1[:, 0] == eot_id
        if bool(ended_B.all()):
            break
    return [_until(row, eot_id) for row in torch.stack(said, dim=1).tolist()]


@torch.no_grad()
def continue_greedily(
    model: nn.Module, prompt: Ids, *, vocab_size: int, end_ids: Sequence[int], max_tokens: int
) -> list[int]:
    """Return how a decoder goes on after ``prompt``, up to one of ``end_ids``."""
    shaped: Any = model
    first = next(model.parameters())
    steps = min(max_tokens, shaped.shape.max_seq_len - prompt.size)
    cache = KVCache(shaped.shape, 1, prompt.size + max(0, steps), first.device, first.dtype)
    inputs, said = prompt.tolist(), list[int]()
    for _ in range(steps):
        start = prompt.size + len(said) - len(inputs)
        tokens_1T = torch.tensor([inputs])
        places_1T = torch.arange(start, start + len(inputs))[None]
        logits_V = model(tokens_1T, places_1T, cache=cache)[0, -1, :vocab_size]
        drawn = int(logits_V.argmax())
        if drawn in end_ids:
            break
        said.append(drawn)
        inputs = [drawn]
    return said


def _until(ids: list[int], end_id: int) -> list[int]:
    return ids[: ids.index(end_id)] if end_id in ids else ids
