"""Greedy decoding of an encoder-decoder, texts of a request together.

Shapes: B texts, S positions of the longest source, V ids of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from distllm.data.tokenizer import Tokenizer
from distllm.models.cache import KVCache

_PADDING_SEGMENT = 1


@torch.no_grad()
def translate(model: Any, tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> list[str]:
    """Return the likeliest target of each source, token by token.

    Sources are framed as in training: the text and EOT for the encoder, EOT to begin the decoder. A
    source longer than the model's context is cut.

    Args:
        model: an encoder-decoder in evaluation mode.
        tokenizer: of the model.
        texts: the sources.
        max_tokens: longest target.
    """
    eot, context = tokenizer.eot_id, model.shape.max_seq_len
    device = next(model.parameters()).device
    sources = [[*tokenizer.encode(text)[: context - 1], eot] for text in texts]
    longest = max(map(len, sources))
    source_BS = torch.tensor([[*ids, *[eot] * (longest - len(ids))] for ids in sources], device=device)
    lengths_B = torch.tensor([len(ids) for ids in sources], device=device)
    places_BS = torch.arange(longest, device=device).expand(len(sources), longest)
    segments_BS = (places_BS >= lengths_B[:, None]).int() * _PADDING_SEGMENT
    steps = min(max_tokens, context - 1)
    weights = next(model.parameters())
    cache = KVCache(model.shape, len(sources), steps + 1, device, weights.dtype)
    tokens_B1 = torch.full((len(sources), 1), eot, device=device)
    drawn: list[torch.Tensor] = []
    ended_B = torch.zeros(len(sources), dtype=torch.bool, device=device)
    for step in range(steps):
        positions_B1 = torch.full_like(tokens_B1, step)
        logits_B1V = model(source_BS, places_BS, segments_BS, tokens_B1, positions_B1, cache=cache)
        tokens_B1 = logits_B1V[:, -1:, : tokenizer.vocab_size].argmax(dim=-1)
        ended_B |= tokens_B1[:, 0] == eot
        if bool(ended_B.all()):
            break
        drawn.append(tokens_B1)
    rows = torch.cat(drawn, dim=1).tolist() if drawn else [[] for _ in texts]
    return [tokenizer.decode(ids[: ids.index(eot)] if eot in ids else ids) for ids in rows]
