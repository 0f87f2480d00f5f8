"""What a private run gives away: its epsilon as a function of samples seen, and the secret of its noise.

The accountant is Opacus's, for the moments of the Gaussian mechanism ("Rényi Differential Privacy",
arXiv:1702.07476). Neighbouring datasets differ by the content of one row.
"""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from distllm.config.schema_optim import PrivateConfig
from distllm.data.order import SampleOrder
from distllm.extras import require
from distllm.fsio import atomic_open, storage_errors

KEY_FILE = "noise.key"


@dataclass(frozen=True, slots=True)
class Spent:
    """What was given away so far.

    Attributes:
        epsilon: holds for batches as they are drawn here: each row once an epoch, so that it composes as
            many Gaussian mechanisms as the rows were gone through, with no gain from sampling.
        poisson: what the accountant says where each row is in each batch by chance, independently; most
            publications give that one, also where batches are drawn otherwise.
    """

    epsilon: float
    poisson: float


class PrivacyAccount:
    """Epsilon of a run, at its delta, as a pure function of the samples taken.

    Args:
        config: noise and delta.
        order: which rows are taken when.
        rows: rows of a step.
    """

    def __init__(self, config: PrivateConfig, order: SampleOrder, rows: int) -> None:
        if config.noise is None:
            raise ValueError("a run without noise has no account")
        self._noise, self._delta = config.noise, config.delta
        self._order, self._rows = order, rows

    def spent(self, samples: int) -> Spent:
        """Return what the first ``samples`` of the order have given away.

        Raises:
            MissingDependency: opacus is not installed.
        """
        drawn = [
            (times, source.total)
            for times, source in zip(self._order.drawn(samples), self._order.sources, strict=True)
            if times
        ]
        if not drawn:
            return Spent(0.0, 0.0)
        epochs = max(-(-times // total) for times, total in drawn)
        rate = min(1.0, max(times * self._rows / samples / total for times, total in drawn))
        steps = samples // self._rows
        return Spent(self._epsilon(1.0, epochs), self._epsilon(rate, steps))

    def _epsilon(self, rate: float, steps: int) -> float:
        return epsilon(self._noise, rate, steps, self._delta)


def epsilon(noise: float, rate: float, steps: int, delta: float) -> float:
    """Return what ``steps`` sampled Gaussian mechanisms give away together, as Opacus's `RDPAccountant` does.

    Args:
        noise: standard deviation of the noise, in units of the largest influence of a row.
        rate: chance of a row to be in a step.
        steps: how many.
        delta: chance that the bound does not hold.
    """
    analysis, orders = _analysis()
    moments = [moment * steps for moment in _moments(noise, rate)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # orders that it has not might give less, never more
        found, _ = analysis.get_privacy_spent(orders=orders, rdp=moments, delta=delta)
    return float(found)


@lru_cache(maxsize=64)
def _moments(noise: float, rate: float) -> Sequence[float]:
    """Return the Rényi divergences of one step, one for each order."""
    analysis, orders = _analysis()
    return [float(m) for m in analysis.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=orders)]


@lru_cache(maxsize=1)
def _analysis() -> tuple[Any, Sequence[float]]:
    """Return Opacus's arithmetic of Rényi divergences, and the orders that it looks at."""
    analysis, accountants = (
        require(f"opacus.accountants{part}", "the account of optim.private", "privacy")
        for part in (".analysis.rdp", "")
    )
    return analysis, accountants.RDPAccountant.DEFAULT_ALPHAS


def noise_key(directory: Path) -> int:
    """Return the secret that the noise of a run follows from, made once and kept in its directory.

    With it a resumed run draws what it would have drawn. Whoever has it can take the noise off again, so
    it is in no checkpoint, and only its owner can read it.

    Raises:
        StorageError: it cannot be written.
    """
    path = directory / KEY_FILE
    with storage_errors(path):
        if not path.exists():
            with atomic_open(path) as stream:  # a kill must not leave an empty key behind
                os.fchmod(stream.fileno(), 0o600)
                stream.write(secrets.token_hex(32).encode())
        return int(path.read_text(encoding="ascii"), 16)


def describe_account(account: PrivacyAccount, config: PrivateConfig, samples: int) -> str:
    """Say what a run of ``samples`` gives away at its end."""
    end = account.spent(samples)
    return (
        f"private: rows are clipped to {config.clip:g}, noise {config.noise:g}; at the end epsilon "
        f"{end.epsilon:.3g} at delta {config.delta:g} ({end.poisson:.3g} if batches were drawn by chance)"
    )
