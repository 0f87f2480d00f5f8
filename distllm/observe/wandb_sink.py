"""A view of the run in Weights & Biases; runs on a thread of its own (`distllm.observe.background`).

``logger.wandb=offline`` writes below ``run_dir/wandb`` and reaches no network. ``online`` does the
same, and a process next to the run uploads what was written (`distllm.observe.sync`), so that a server
that is slow or down is never in the way. Only a trial of a sweep talks to the server itself, because
its agent does. Names and axes are those of `distllm.observe.names`.

A history there can only grow, so a step that is taken again, by a resumed attempt or after a rewind,
keeps the values it was first shown with. What a killed attempt had not delivered is missing there.
``metrics.jsonl`` has every step, and the newest of it.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from distllm.observe.alerts import alert_of
from distllm.observe.goodput import account
from distllm.observe.ledger import LEDGER_FILE, Event, read_events
from distllm.observe.lineage import log_inputs, log_outputs
from distllm.observe.metrics import EvalRecord, StepRecord
from distllm.observe.names import (
    SAMPLE_COLUMNS,
    SAMPLES,
    STEP_AXIS,
    TOKEN_AXIS,
    definitions,
    eval_values,
    reliability_values,
    step_values,
)
from distllm.observe.sync import start_sync
from distllm.observe.tracked import TrackedRun

INIT_SECONDS = 60.0
LOGIN_SECONDS = 30
FINISH_SECONDS = 100.0


class WandbSink:
    """Show a run in Weights & Biases. Raises what wandb raises.

    Args:
        run: what is shown; its ``shown`` says up to where earlier attempts have shown it.
    """

    def __init__(self, run: TrackedRun) -> None:
        self._tracked = run
        self._task = run.config.task.name
        self._shown = dict(run.shown)
        self._last_eval: dict[str, float] = {}
        self._saved_step: int | None = None
        self._run: Any = _open(run)
        for name, axis, summary in definitions(self._task):
            self._run.define_metric(name, step_metric=axis, summary=summary)
        log_inputs(self._run, run)
        if run.config.logger.wandb == "online" and not self._online():
            start_sync(self._run.dir, run.run_id)
        if run.attempt > 1:
            self._alert_of_previous_attempt()

    def log_step(self, record: StepRecord) -> None:
        """Log ``train/ perf/ sys/ data/ reliability/`` at the step's place on both axes."""
        self._log_values("step", record.step, record.tokens, dict(step_values(record)))

    def log_eval(self, record: EvalRecord) -> None:
        """Log ``eval/<task>/``, and how well the run has used its time so far."""
        self._last_eval = eval_values(record, self._task)
        events = _events(self._tracked)
        so_far = reliability_values(account(events)) if events else {}
        self._log_values("eval", record.step, record.tokens, {**self._last_eval, **so_far})

    def log_sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        """Log the table ``eval/samples``; the dashboard can slide through them by step."""
        import wandb

        table = wandb.Table(columns=list(SAMPLE_COLUMNS), data=[[step, tokens, prompt, text]])
        self._log_values("sample", step, tokens, {SAMPLES: table})

    def log_note(self, step: int, text: str) -> None:
        """Do nothing: notes are for the console and the run directory."""

    def log_event(self, event: Event) -> None:
        """Raise the alert that the event is, if it is one."""
        if event.kind == "saved":
            self._saved_step = int(event.number("step"))
        alert = alert_of(event)
        if alert is not None:
            self._run.alert(title=alert.title, text=alert.text, level=alert.level)

    def close(self) -> None:
        """Log the newest checkpoint and its evaluation, and finish the run."""
        log_outputs(self._run, self._tracked, self._saved_step, self._last_eval)
        self._run.finish()

    def _alert_of_previous_attempt(self) -> None:
        """Raise the alerts that the attempt before could not raise, because it hung or was killed."""
        before = self._tracked.attempt - 1
        for event in _events(self._tracked):
            if event.attempt == before and event.kind in ("hang", "killed"):
                self.log_event(event)

    def _log_values(self, kind: str, step: int, tokens: int, values: dict[str, Any]) -> None:
        """Log values unless a record of this kind was shown at this step or a later one."""
        if step > self._shown.get(kind, -1):
            self._shown[kind] = step
            self._run.log({STEP_AXIS: step, TOKEN_AXIS: tokens} | values)

    def _online(self) -> bool:
        return _mode(self._tracked) == "online"


def _mode(run: TrackedRun) -> Literal["online", "offline"]:
    in_sweep = "WANDB_SWEEP_ID" in os.environ
    return "online" if in_sweep and run.config.logger.wandb == "online" else "offline"


def _open(run: TrackedRun) -> Any:
    import wandb

    mode, config = _mode(run), run.config
    return wandb.init(
        project=config.logger.project,
        name=config.name,
        group=config.logger.group,
        job_type=config.task.name,
        id=run.run_id,
        resume="allow" if mode == "online" else None,
        mode=mode,
        dir=str(run.directory),
        config=run.configuration(),
        settings=wandb.Settings(
            console="off",
            # Its description of the process holds the command line, in which secrets may be.
            x_disable_meta=True,
            reinit="finish_previous",  # one that met a full disk
            init_timeout=INIT_SECONDS,
            login_timeout=LOGIN_SECONDS,
            finish_timeout=FINISH_SECONDS,
        ),
    )


def _events(run: TrackedRun) -> list[Event]:
    path = run.directory / LEDGER_FILE
    return read_events(path) if path.exists() else []
