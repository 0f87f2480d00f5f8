"""Contrastive learning: a query is close to its passage, and far from those of all other pairs of the batch.

The loss of a pair depends on every other pair of the step, on all ranks. So the step first embeds all of
them without a graph; the gradient with respect to each embedding follows from the matrix of similarities,
and is then propagated through one micro-batch at a time ("Scaling Deep Contrastive Learning Batch Size
under Memory Limited Setup", GradCache, arXiv:2101.06983). The result is that of one large batch, whatever
the micro-batches and ranks.

Shapes: B rows of a micro-batch, N pairs of this rank's step, G pairs of all ranks, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from distllm.data.batch import IGNORE_INDEX, Batch
from distllm.dist.collectives import rank_errors
from distllm.dist.topology import Topology
from distllm.tasks.base import Task, check_vocabulary, device_of, to_device


@dataclass(frozen=True, slots=True)
class _Known:
    """Results of the first pass for one micro-batch: loss, gradients, and random states before it."""

    loss: Tensor
    grad_query_BC: Tensor
    grad_passage_BC: Tensor
    random: list[Tensor]


class Contrastive(Task):
    """InfoNCE with in-batch negatives: the cross-entropy of each query's own passage among all.

    Args:
        vocab_size: ids the model knows.
        temperature: similarities are divided by it.
    """

    unit = "pair"
    reads_text = False

    def __init__(self, vocab_size: int, temperature: float) -> None:
        self.vocab_size = vocab_size
        self.temperature = temperature
        self._known: dict[bytes, _Known] = {}

    def weight(self, batch: Batch) -> int:
        """Return the number of pairs; damaged rows do not count."""
        return int(_is_pair(batch).sum())

    @torch.no_grad()
    def begin(self, model: nn.Module, batches: Sequence[Batch], topology: Topology) -> None:
        """Embed all pairs of the step, and compute the gradient with respect to each embedding."""
        device = device_of(model)
        embedded, states = [], []
        for batch in batches:
            states.append(_random_state(device))
            embedded.append(self._embed(model, batch))
        query_NC, passage_NC = (torch.cat(side).float() for side in zip(*embedded, strict=True))
        pair_N = torch.cat([_is_pair(batch) for batch in batches]).to(device)
        losses_N, grad_query_NC, grad_passage_NC = self._gradients(query_NC, passage_NC, pair_N, topology)
        self._known, at = {}, 0
        for batch, state in zip(batches, states, strict=True):
            own = slice(at, at := at + batch.sample_ids_B.size)
            self._known[batch.sample_ids_B.tobytes()] = _Known(
                losses_N[own].sum(), grad_query_NC[own], grad_passage_NC[own], state
            )

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss summed over the pairs of a batch that was passed to `begin`.

        Its value is the loss; its gradient is this batch's part of the gradient of the whole step.
        """
        known = self._known[batch.sample_ids_B.tobytes()]
        if not torch.is_grad_enabled():
            return known.loss
        now = _random_state(known.loss.device)
        _set_random_state(known.random, known.loss.device)
        query_BC, passage_BC = self._embed(model, batch)
        _set_random_state(now, known.loss.device)
        carried = (query_BC.float() * known.grad_query_BC).sum()
        carried = carried + (passage_BC.float() * known.grad_passage_BC).sum()
        return carried - carried.detach() + known.loss

    def _embed(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the unit vectors query_BC and passage_BC of a batch."""
        check_vocabulary(batch, self.vocab_size, targets_are_ids=False)
        assert batch.source is not None, "rows of a contrastive task have sources"
        device = device_of(model)
        source = batch.source
        query_BC: Tensor = model(
            to_device(source.tokens_BS, device),
            to_device(source.positions_BS, device),
            to_device(source.segments_BS, device),
        )
        passage_BC: Tensor = model(
            to_device(batch.tokens_BT, device),
            to_device(batch.positions_BT, device),
            to_device(batch.segments_BT, device),
        )
        return query_BC, passage_BC

    def _gradients(
        self, query_NC: Tensor, passage_NC: Tensor, pair_N: Tensor, topology: Topology
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return each pair's loss, and the gradient of the sum over all ranks for this rank's vectors."""
        query_GC, passage_GC = (_gathered(side, topology) for side in (query_NC, passage_NC))
        pair_G = _gathered(pair_N.to(torch.int32), topology).bool()
        with torch.enable_grad():
            query_GC, passage_GC = query_GC.requires_grad_(), passage_GC.requires_grad_()
            scores_GG = (query_GC @ passage_GC.T) / self.temperature
            scores_GG = scores_GG.masked_fill(~pair_G[None], -torch.inf)
            own_G = torch.arange(pair_G.numel(), device=pair_G.device)
            own_G = own_G.masked_fill(~pair_G, IGNORE_INDEX)
            losses_G = cross_entropy(scores_GG, own_G, ignore_index=IGNORE_INDEX, reduction="none")
            grad_query_GC, grad_passage_GC = torch.autograd.grad(losses_G.sum(), [query_GC, passage_GC])
        first = topology.rank * pair_N.numel()
        own = slice(first, first + pair_N.numel())
        return losses_G.detach()[own], grad_query_GC[own], grad_passage_GC[own]


def _is_pair(batch: Batch) -> Tensor:
    return torch.from_numpy((batch.targets_BT != IGNORE_INDEX).any(axis=1))


def _gathered(own_N: Tensor, topology: Topology) -> Tensor:
    """Return the tensors of all ranks, equally long on each, one after another."""
    if topology.world_size == 1:
        return own_N.detach().clone()
    parts = [torch.empty_like(own_N) for _ in range(topology.world_size)]
    with rank_errors(topology, "gathering embeddings"):
        torch.distributed.all_gather(parts, own_N.contiguous())
    return torch.cat(parts)


def _random_state(device: torch.device) -> list[Tensor]:
    """Return the state of the generators that dropout draws from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
