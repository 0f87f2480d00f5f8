"""The privacy loss of a private run: epsilon as a function of samples seen, and the secret key of its noise.

The accountant is that of Opacus for Rényi differential privacy (arXiv:1702.07476). Neighbouring datasets
differ by the content of one row.
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
    """The privacy loss so far.

    Attributes:
        epsilon: holds for the batches of this run, which contain each row once per epoch: the composition of
            one Gaussian mechanism per epoch, without amplification by sampling.
        poisson: the value if each row were in each batch independently by chance. Most publications state
            this one, also when batches are drawn in another way.
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
        """Return the privacy loss after the first ``samples`` of the order.

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
    """Return the epsilon of ``steps`` sampled Gaussian mechanisms, as Opacus's `RDPAccountant` computes it.

    Args:
        noise: standard deviation of the noise, in units of the largest influence of a row.
        rate: probability of a row to be in a step.
        steps: number of steps.
        delta: probability that the bound does not hold.
    """
    analysis, orders = _analysis()
    moments = [moment * steps for moment in _moments(noise, rate)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more orders could only lower the bound
        found, _ = analysis.get_privacy_spent(orders=orders, rdp=moments, delta=delta)
    return float(found)


@lru_cache(maxsize=64)
def _moments(noise: float, rate: float) -> Sequence[float]:
    """Return the Rényi divergences of one step, one for each order."""
    analysis, orders = _analysis()
    return [float(m) for m in analysis.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=orders)]


@lru_cache(maxsize=1)
def _analysis() -> tuple[Any, Sequence[float]]:
    """Return Opacus's module for Rényi divergences, and the orders that it considers."""
    analysis, accountants = (
        require(f"opacus.accountants{part}", "the account of optim.private", "privacy")
        for part in (".analysis.rdp", "")
    )
    return analysis, accountants.RDPAccountant.DEFAULT_ALPHAS


def noise_key(directory: Path) -> int:
    """Return the secret seed of a run's noise, which is drawn once and kept in the run directory.

    A resumed run draws the same noise from it. Whoever has the key can remove the noise, so it is not part of
    any checkpoint, and only its owner can read the file.

    Raises:
        StorageError: the key cannot be written.
    """
    path = directory / KEY_FILE
    with storage_errors(path):
        if not path.exists():
            with atomic_open(path) as stream:  # a kill must not leave an empty key behind
                os.fchmod(stream.fileno(), 0o600)
                stream.write(secrets.token_hex(32).encode())
        return int(path.read_text(encoding="ascii"), 16)


def describe_account(account: PrivacyAccount, config: PrivateConfig, samples: int) -> str:
    """Describe the privacy loss of a run of ``samples`` samples."""
    end = account.spent(samples)
    return (
        f"private: rows are clipped to {config.clip:g}, noise {config.noise:g}; at the end epsilon "
        f"{end.epsilon:.3g} at delta {config.delta:g} ({end.poisson:.3g} if batches were drawn by chance)"
    )
