"""A rolling hash over what every step did: two histories with equal links did the same, to the bit.

The link of a step is a hash of the link before it, the step's number, its global batch (ids and
tokens of the samples), the bits of its loss and gradient norm, and now and then the fingerprint of
the weights. It is written to the metrics and, with the train state, to every checkpoint. A run that
goes on from a checkpoint must make the links again that the metrics already hold; where it does
not, the recovery was not exact, and it says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import xxhash

from distllm.observe.metrics import StepRecord
from distllm.train.state import TrainState

_REMEMBERED = 4096  # steps; a rewind goes no further back than the checkpoints that are kept


@dataclass(frozen=True, slots=True)
class Link:
    """What is known of a step that was taken before."""

    chain: str
    batch_digest: str
    loss: float


def next_link(state: TrainState, batch_digest: str, loss: float, grad_norm: float) -> str:
    """Return the link (16 hexadecimal digits) of the step that ``state`` has just counted."""
    parts = (state.chain, state.step, batch_digest, loss.hex(), grad_norm.hex(), state.weights_fingerprint)
    return xxhash.xxh3_64_hexdigest("/".join(map(str, parts)).encode())


class Chain:
    """Extend the chain in a train state, and compare it with what was recorded before.

    Args:
        state: holds the chain.
        recorded: steps that earlier attempts recorded, on the rank that reports deviations.
    """

    def __init__(self, state: TrainState, recorded: Iterable[StepRecord] = ()) -> None:
        self._state = state
        # A rewind changes what comes after it: only records made after the same one can be repeated.
        self._known = {
            record.step: Link(record.chain, record.batch_digest, record.loss)
            for record in recorded
            if record.chain and record.rewinds == state.rewinds and record.step >= state.step
        }

    def checkpoint_deviation(self) -> str | None:
        """Return how the restored state differs from the record of its step, or None."""
        known = self._known.get(self._state.step)
        if known is None or known.chain == self._state.chain:
            return None
        return f"the checkpoint of step {self._state.step} does not continue the recorded metrics"

    def extend(self, batch_digest: str, loss: float, grad_norm: float) -> str | None:
        """Add the link of the step just counted.

        Returns:
            How the step differs from what it was when it was taken before, at the first one that
            differs; else None.
        """
        state = self._state
        state.chain = next_link(state, batch_digest, loss, grad_norm)
        state.weights_fingerprint = ""
        known = self._known.get(state.step)
        self._known[state.step] = Link(state.chain, batch_digest, loss)
        self._known.pop(state.step - _REMEMBERED, None)
        if known is None or known.chain == state.chain:
            return None
        self.forget_after(state.step)  # once the histories have parted every later step differs too
        same_batch = "the same batch" if known.batch_digest == batch_digest else "another batch"
        return (
            f"step {state.step} is not what it was when it was taken before: "
            f"loss {loss!r} instead of {known.loss!r} on {same_batch}"
        )

    def attest(self, fingerprint: str) -> None:
        """Let the next link depend on the weights: their fingerprint was found equal on all ranks."""
        self._state.weights_fingerprint = fingerprint

    def forget_after(self, step: int) -> None:
        """Expect nothing of the steps after ``step``: they will not be repeated as they were."""
        self._known = {known: link for known, link in self._known.items() if known <= step}
