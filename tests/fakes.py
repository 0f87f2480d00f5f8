"""Very small models with the calling conventions of the three families, for tests of tasks."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

WIDTH = 8


def _visible(left, right):
    return (left[:, :, None] == right[:, None, :]).double()


class FakeEncoder(nn.Module):
    """Mixes each segment's embeddings; ``head`` is ``span`` or ``embedding``."""

    def __init__(self, vocab_size, head, dropout=0.0):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, WIDTH)
        self.out = nn.Linear(WIDTH, 2 if head == "span" else WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.head = head

    def forward(self, tokens, positions, segments):
        x = self.dropout(self.embed(tokens)) * (1 + positions[..., None].to(self.embed.weight.dtype) / 7)
        mixed = torch.tanh(_visible(segments, segments).to(x.dtype) @ x / 5) + x
        y = self.out(mixed)
        if self.head == "span":
            return y
        own = (segments == segments[:, :1])[..., None]
        return normalize((y * own).sum(1) / own.sum(1), dim=-1)


class FakeDecoder(nn.Module):
    """Logits, or the summed loss, from the sum of what precedes in a segment (and its source)."""

    def __init__(self, vocab_size):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, WIDTH)
        self.source = nn.Embedding(vocab_size, WIDTH)
        self.out = nn.Linear(WIDTH, vocab_size)

    def forward(self, tokens, positions, segments, targets=None):
        return self._predict(self._mixed(tokens, positions, segments), targets)

    def _mixed(self, tokens, positions, segments):
        x = self.embed(tokens) * (1 + positions[..., None].to(self.embed.weight.dtype) / 7)
        return x + torch.tanh(_visible(segments, segments).tril().to(x.dtype) @ x / 5)

    def _predict(self, x, targets):
        logits = self.out(x)
        if targets is None:
            return logits
        return cross_entropy(
            logits.flatten(0, 1), targets.long().flatten(), reduction="sum", ignore_index=-100
        )


class FakeEncoderDecoder(FakeDecoder):
    def forward(self, source, source_positions, source_segments, tokens, positions, segments, targets=None):
        x = self._mixed(tokens, positions, segments)
        seen = _visible(segments, source_segments).to(x.dtype) @ self.source(source)
        return self._predict(x + torch.tanh(seen / 5), targets)
