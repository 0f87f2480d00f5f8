"""A rolling hash over what every step did: two histories with equal hashes are equal bit for bit.

The hash of a step covers the hash of the step before, the step's number, its global batch (ids and
tokens of the samples), the bits of its loss and gradient norm, and at intervals the fingerprint of the
weights. It is written to the metrics and, with the train state, to every checkpoint. A run that continues
from a checkpoint must reproduce the hashes that the metrics already hold; if it does not, the recovery was
not exact, and the run reports it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import xxhash

from distllm.observe.metrics import StepRecord
from distllm.train.state import TrainState

_REMEMBERED = 4096  # steps; a rewind never goes further back than the oldest checkpoint that is kept


@dataclass(frozen=True, slots=True)
class Link:
    """What was recorded of a step."""

    chain: str
    batch_digest: str
    loss: float


def next_link(state: TrainState, batch_digest: str, loss: float, grad_norm: float) -> str:
    """Return the hash (16 hexadecimal digits) of the step that ``state`` has just counted."""
    parts = (state.chain, state.step, batch_digest, loss.hex(), grad_norm.hex(), state.weights_fingerprint)
    return xxhash.xxh3_64_hexdigest("/".join(map(str, parts)).encode())


class Chain:
    """Extend the chain in a train state, and compare it with what was recorded before.

    Args:
        state: holds the chain.
        recorded: steps that earlier attempts recorded; empty except on the rank that reports deviations.
    """

    def __init__(self, state: TrainState, recorded: Iterable[StepRecord] = ()) -> None:
        self._state = state
        # A rewind changes the steps after it: only records made after the same rewind can be reproduced.
        self._known = {
            record.step: Link(record.chain, record.batch_digest, record.loss)
            for record in recorded
            if record.chain and record.rewinds == state.rewinds and record.step >= state.step
        }

    def checkpoint_deviation(self) -> str | None:
        """Return how the restored state differs from the record of its step; None if it does not."""
        known = self._known.get(self._state.step)
        if known is None or known.chain == self._state.chain:
            return None
        return f"the checkpoint of step {self._state.step} does not continue the recorded metrics"

    def extend(self, batch_digest: str, loss: float, grad_norm: float) -> str | None:
        """Add the step that was just counted.

        Returns:
            How the step differs from the record of an earlier attempt, at the first step that does;
            else None.
        """
        state = self._state
        state.chain = next_link(state, batch_digest, loss, grad_norm)
        state.weights_fingerprint = ""
        known = self._known.get(state.step)
        self._known[state.step] = Link(state.chain, batch_digest, loss)
        self._known.pop(state.step - _REMEMBERED, None)
        if known is None or known.chain == state.chain:
            return None
        self.forget_after(state.step)  # all later steps differ too
        same_batch = "the same batch" if known.batch_digest == batch_digest else "another batch"
        return (
            f"step {state.step} differs from when it was taken before: "
            f"loss {loss!r} instead of {known.loss!r} on {same_batch}"
        )

    def attest(self, fingerprint: str) -> None:
        """Include the weights in the next hash: their fingerprint was equal on all ranks."""
        self._state.weights_fingerprint = fingerprint

    def forget_after(self, step: int) -> None:
        """Forget the records of the steps after ``step``: they will not be reproduced."""
        self._known = {known: link for known, link in self._known.items() if known <= step}
