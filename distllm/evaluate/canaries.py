"""How well a model remembers planted canaries: their exact exposure among all possible canaries.

Shapes: N canaries there could be, B rows of a forward pass, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from distllm.data.batch import IGNORE_INDEX
from distllm.data.privacy.canaries import Canaries
from distllm.data.tokenizer import Tokenizer
from distllm.dist.collectives import sum_over_ranks
from distllm.dist.topology import Topology
from distllm.observe.metrics import EvalRecord
from distllm.tasks.base import device_of

_ROWS = 16


class CanaryWatch:
    """Measures the exposure of canaries again and again while a causal language model learns.

    Args:
        canaries: of the dataset.
        tokenizer: its tokenizer.
        topology: this rank's place.
    """

    def __init__(self, canaries: Canaries, tokenizer: Tokenizer, topology: Topology) -> None:
        self._planted, self._topology = dict(canaries.planted), topology
        ids = tokenizer.encode_batch(canaries.texts)
        width = max(map(len, ids))
        self._tokens_NT = np.full((len(ids), width), tokenizer.eot_id, dtype=np.int64)
        self._targets_NT = np.full((len(ids), width), IGNORE_INDEX, dtype=np.int64)
        for number, row in enumerate(ids):
            self._tokens_NT[number, 1 : len(row)] = row[:-1]  # after EOT, as a document begins
            self._targets_NT[number, : len(row)] = row

    def beside(self, record: EvalRecord, model: nn.Module, between: Callable[[], None]) -> EvalRecord:
        """Return an evaluation with the exposures after it; see `exposure`. Collective."""
        return replace(record, exposure=self.exposure(model, between))

    def exposure(self, model: nn.Module, between: Callable[[], None] = lambda: None) -> Mapping[str, float]:
        """Return the mean exposure of canaries that were planted equally often, by ``x<times>``. Collective.

        The exposure, in bits, is log2 of the number of possible canaries minus log2 of a canary's rank
        among them by likelihood: 0 for the least likely, 1.4 on average if nothing is remembered.
        ``between`` is called before every forward pass, equally often on all ranks, and may raise.
        """
        nll_N = self._nll(model, between)
        bits: dict[int, list[float]] = {}
        for number, copies in sorted(self._planted.items(), key=lambda item: (item[1], item[0])):
            rank = int(np.count_nonzero(nll_N <= nll_N[number]))
            bits.setdefault(copies, []).append(float(np.log2(nll_N.size / rank)))
        return {f"x{copies}": float(np.mean(found)) for copies, found in bits.items()}

    @torch.no_grad()
    def _nll(self, model: nn.Module, between: Callable[[], None]) -> NDArray[np.float64]:
        """Return the negative log-likelihood of every canary, nll_N, in nats.

        The rows of a forward pass do not depend on the number of ranks, so the result does not either, to
        the last bit. All ranks run equally many passes; one without rows of its own repeats others.
        """
        was_training, device, topology = model.training, device_of(model), self._topology
        model.eval()
        nll_N = np.zeros(len(self._tokens_NT))
        starts = range(0, nll_N.size, _ROWS)
        for first in range(0, len(starts), topology.data_ranks):
            between()
            own = first + topology.data_rank
            rows = slice(start := starts[min(own, len(starts) - 1)], start + _ROWS)
            tokens_BT, targets_BT = (
                torch.from_numpy(part_NT[rows]).to(device) for part_NT in (self._tokens_NT, self._targets_NT)
            )
            positions_BT = torch.arange(tokens_BT.shape[1], device=device).expand_as(tokens_BT)
            logits_BTV = model(tokens_BT, positions_BT).float()
            nll_BT = F.cross_entropy(
                logits_BTV.transpose(1, 2), targets_BT, ignore_index=IGNORE_INDEX, reduction="none"
            )
            if own < len(starts):  # ranks that share rows all have them: one counts
                nll_N[rows] = topology.counts_rows * nll_BT.double().sum(dim=1).cpu().numpy()
        model.train(was_training)
        return np.array(sum_over_ranks(nll_N.tolist(), topology))
