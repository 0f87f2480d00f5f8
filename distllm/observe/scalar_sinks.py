"""TensorBoard, MLflow and trackio, with the same names as in Weights & Biases.

Each runs on its own thread (`distllm.observe.background`) and raises what its library raises. A step that a
resumed attempt takes again is logged again: TensorBoard and MLflow show the newest value of a step; trackio
does not, so it gets each step once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from distllm.config.keys import flatten
from distllm.errors import MissingDependency
from distllm.observe.ledger import Event
from distllm.observe.metrics import EvalRecord, StepRecord
from distllm.observe.names import SAMPLES, STEP_AXIS, TOKEN_AXIS, eval_values, step_values
from distllm.observe.tracked import TrackedRun

_LONGEST_PARAMETER = 500  # characters that MLflow accepts


class ScalarSink:
    """Common part of the three: numbers by name at a step."""

    def __init__(self, run: TrackedRun) -> None:
        self._task = run.config.task.name

    def log_step(self, record: StepRecord) -> None:
        """Log the values of a step."""
        self._scalars(step_values(record), record.step, record.tokens)

    def log_eval(self, record: EvalRecord) -> None:
        """Log the measures of an evaluation."""
        self._scalars(eval_values(record, self._task), record.step, record.tokens)

    def log_sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        """Log a sample, if the dashboard can show texts."""

    def log_note(self, step: int, text: str) -> None:
        """Do nothing: notes are for the console and the run directory."""

    def log_event(self, event: Event) -> None:
        """Do nothing: the ledger has it."""

    def close(self) -> None:
        """Finish the run."""

    def _scalars(self, values: Mapping[str, float], step: int, tokens: int) -> None:
        raise NotImplementedError


class TensorBoardSink(ScalarSink):
    """Event files in ``run_dir/tensorboard``; look at them with ``tensorboard --logdir``."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        self._writer: Any = SummaryWriter(str(run.directory / "tensorboard"))

    def log_sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        """Log the sample as preformatted text."""
        shown = "\n".join(f"    {line}" for line in (prompt + text).splitlines())
        self._writer.add_text(SAMPLES, shown, step)

    def close(self) -> None:
        """Flush the file."""
        self._writer.close()

    def _scalars(self, values: Mapping[str, float], step: int, tokens: int) -> None:
        for name, value in {**values, TOKEN_AXIS: tokens}.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


class MlflowSink(ScalarSink):
    """A run in the tracking store ``logger.mlflow``; a resumed run continues its own."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        uri = str(run.config.logger.mlflow)
        if uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise _missing("mlflow") from error
        self._client: Any = MlflowClient(uri)
        known = self._client.get_experiment_by_name(run.config.logger.project)
        experiment = (
            known.experiment_id if known else self._client.create_experiment(run.config.logger.project)
        )
        mine = self._client.search_runs([experiment], f"tags.distllm_run = '{run.run_id}'")
        self._id = mine[0].info.run_id if mine else self._create(run, experiment)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._id)

    def _create(self, run: TrackedRun, experiment: str) -> str:
        created = self._client.create_run(
            experiment, run_name=run.config.name, tags={"distllm_run": run.run_id}
        )
        for key, value in flatten(run.configuration()).items():
            self._client.log_param(created.info.run_id, key, str(value)[:_LONGEST_PARAMETER])
        return str(created.info.run_id)

    def _scalars(self, values: Mapping[str, float], step: int, tokens: int) -> None:
        for name, value in {**values, TOKEN_AXIS: tokens}.items():
            self._client.log_metric(self._id, name, float(value), step=step)


class TrackioSink(ScalarSink):
    """A local trackio project; look at it with ``trackio show``."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        os.environ.setdefault("TRACKIO_DIR", str((run.directory / "trackio").absolute()))
        try:
            import trackio
        except ImportError as error:
            raise _missing("trackio") from error
        self._shown = run.shown.get("step", -1)
        self._run: Any = trackio.init(
            project=run.config.logger.project,
            name=run.config.name,
            group=run.config.logger.group,
            config=run.configuration(),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log_step(self, record: StepRecord) -> None:
        """Log a step that was not shown before."""
        if record.step > self._shown:
            self._shown = record.step
            super().log_step(record)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()

    def _scalars(self, values: Mapping[str, float], step: int, tokens: int) -> None:
        self._run.log({**values, STEP_AXIS: step, TOKEN_AXIS: tokens}, step=step)


def _missing(package: str) -> MissingDependency:
    return MissingDependency(
        f"{package} is not installed", where="logger", remedy="pip install 'distllm[loggers]'"
    )
