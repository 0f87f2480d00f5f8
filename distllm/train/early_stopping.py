"""Early stopping: whether a run has stopped improving, judged after every evaluation.

Its whole state is in `TrainState`, so a resumed run ends where an uninterrupted one does.
"""

from __future__ import annotations

import math

from distllm.config.schema_stopping import OF_SOURCE, EarlyStoppingConfig
from distllm.data.batch import Split
from distllm.dist.agree import agree
from distllm.dist.topology import Topology
from distllm.errors import ConfigError
from distllm.evaluate.perplexity import Perplexity
from distllm.train.state import TrainState


class EarlyStopping:
    """Compares each evaluation with the best so far.

    Args:
        config: the metric, and how long to wait for a better value.
        state: holds the best value and the number of evaluations since.
        topology: this rank's place.
        split: the data that is evaluated, if any.

    Raises:
        ConfigError: the metric is the loss of a source that has no loss of its own.
    """

    def __init__(
        self, config: EarlyStoppingConfig, state: TrainState, topology: Topology, split: Split | None
    ) -> None:
        self._config, self._state, self._topology = config, state, topology
        sources = [source.name for source in split.sources if source.total] if split else []
        name = config.metric.removeprefix(OF_SOURCE)
        if config.patience and name != config.metric and (name not in sources or len(sources) == 1):
            raise ConfigError(
                f"the validation split has no source {name!r} with a loss of its own",
                where="train.early_stopping.metric",
                remedy=f"use loss, or one of {', '.join(OF_SOURCE + known for known in sources)}"
                if len(sources) > 1
                else "use loss: there is one source",
            )

    def over(self) -> bool:
        """Whether the run has ended; the same on every rank, and again when it is resumed."""
        patience = self._config.patience
        return patience is not None and self._state.evaluations_since_best >= patience

    @property
    def why(self) -> str:
        """The reason, for people."""
        best, waited = self._state.best_metric, self._state.evaluations_since_best
        was = "was never finite" if best is None else f"was {best:.4f} at best"
        return (
            f"early stopping: {self._config.metric} {was}, and the {waited} evaluations since were not "
            f"better by more than {self._config.min_delta:g}"
        )

    def judge(self, measured: Perplexity) -> None:
        """Take an evaluation into account. Collective: rank 0's value decides for all ranks.

        A value that is not finite is never an improvement.

        Raises:
            ConfigError: the task has no such metric.
        """
        if self._config.patience is None:
            return
        value: float = agree(self._topology, lambda: self._value(measured))
        state = self._state
        best = math.inf if state.best_metric is None else state.best_metric
        if math.isfinite(value) and value < best - self._config.min_delta:
            state.best_metric, state.evaluations_since_best = value, 0
        else:
            state.evaluations_since_best += 1

    def _value(self, measured: Perplexity) -> float:
        metric = self._config.metric
        if metric.startswith(OF_SOURCE):
            return measured.sources.get(metric.removeprefix(OF_SOURCE), math.nan)
        value: float | None = getattr(measured, metric)
        if value is None:
            raise ConfigError(
                f"validation of this task has no {metric}: its targets are not text",
                where="train.early_stopping.metric",
                remedy="train.early_stopping.metric=loss",
            )
        return value
