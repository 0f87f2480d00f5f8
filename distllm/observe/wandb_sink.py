"""A view of the run in Weights & Biases; runs on a thread of its own (`distllm.observe.background`).

``logger.wandb=offline`` writes below ``run_dir/wandb`` and reaches no network. ``online`` does the
same, and a process next to the run uploads what was written (`distllm.observe.sync`), so that a server
that is slow or down is never in the way. Only a trial of a sweep talks to the server itself, because
its agent does. Names and axes are those of `distllm.observe.names`.

A history there can only grow, so a step that is taken again, by a resumed attempt or after a rewind,
keeps the values it was first shown with; ``metrics.jsonl`` has the newest of it. What a killed attempt
had not delivered is missing in its file, and the next attempt shows it from ``metrics.jsonl`` first.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
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
from distllm.observe.sinks import METRICS_FILE, replay
from distllm.observe.sync import (
    LAST_SECONDS,
    LOG_FILE,
    RETRY_SECONDS,
    Upload,
    not_uploaded,
    read_upload,
    start_sync,
)
from distllm.observe.tracked import TrackedRun
from distllm.observe.wandb_file import highest_shown

INIT_SECONDS = 60.0
LOGIN_SECONDS = 30
FINISH_SECONDS = 100.0
FLUSH_SECONDS = 1.0
LAST_UPLOAD_SECONDS = 20.0
"""How long a run that is done waits for its upload, where the server takes it."""
FAILED, TRY_AGAIN = 70, 75
"""How an attempt ends that met an error or was asked to stop, as the process does (`distllm.errors`)."""

_log = logging.getLogger(__name__)


class WandbSink:
    """Show a run in Weights & Biases. Raises what wandb raises.

    Args:
        run: what is shown; its ``shown`` says up to where earlier attempts have recorded it.
        report: gets a sentence for the user: where the run is shown, what is left to upload.
    """

    def __init__(self, run: TrackedRun, report: Callable[[str], None] = _log.info) -> None:
        self._tracked = run
        self._task = run.config.task.name
        self._report = report
        self._last_eval: dict[str, float] = {}
        self._saved_step: int | None = None
        self._exit_code = FAILED
        self._waits = False
        self._directory = run.directory / "wandb"
        self._told = Upload()
        earlier = sorted(self._directory.glob(f"offline-run-*/run-{run.run_id}.wandb"))
        self._run: Any = _open(run)
        for name, axis, summary in definitions(self._task):
            self._run.define_metric(name, step_metric=axis, summary=summary)
        log_inputs(self._run, run)
        self._uploads = run.config.logger.wandb == "online" and not self._online()
        if self._online():
            self._report(f"Weights & Biases: {self._run.url}")
        elif self._uploads:
            settings = self._run.settings
            start_sync(Path(settings.sync_file), run.run_id, settings.base_url)
        self._shown = dict(run.shown)
        if run.attempt > 1:
            self._show_what_is_missing(earlier)
            self._alert_of_previous_attempt()

    def log_step(self, record: StepRecord) -> None:
        """Log ``train/ perf/ sys/ data/ reliability/`` at the step's place on both axes."""
        self._log_values("step", record.step, record.tokens, dict(step_values(record)))
        self._tell_of_upload()

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
        if event.kind in ("done", "stopped"):
            self._exit_code = 0
            self._waits = event.kind == "done"
            if alert is not None and event.kind == "stopped":
                self._exit_code = TRY_AGAIN
                self._run.mark_preempting()

    def close(self) -> None:
        """Log the newest checkpoint and its evaluation, and finish the run as its last event says."""
        try:
            log_outputs(self._run, self._tracked, self._saved_step, self._last_eval)
        finally:
            self._run.finish(exit_code=self._exit_code)
        if not self._online():
            self._tell_what_is_left()

    def _show_what_is_missing(self, earlier: Sequence[Path]) -> None:
        """Show the steps that ``metrics.jsonl`` has and the files of earlier attempts have not."""
        if not earlier:
            return
        self._shown = {}
        for path in earlier:
            self._shown.update(highest_shown(path))
        replay(self._tracked.directory / METRICS_FILE, self, before_attempt=self._tracked.attempt)

    def _tell_of_upload(self) -> None:
        """Report where the run is shown once that is known, and what keeps it from being uploaded."""
        if not self._uploads:
            return
        upload, told = read_upload(self._directory), self._told
        self._told = upload
        if upload.url and upload.url != told.url:
            self._report(f"Weights & Biases: {upload.url}")
        if upload.problem and upload.problem != told.problem:
            _log.warning(
                "Weights & Biases takes nothing (%s: %s); training goes on, the upload is tried again every "
                "%.0f s. %s",
                self._run.settings.base_url, upload.problem, RETRY_SECONDS, _remedy(upload.problem),
            )  # fmt: skip

    def _tell_what_is_left(self) -> None:
        """Report whether the run is uploaded, and how what is not can be."""
        until = time.monotonic() + LAST_UPLOAD_SECONDS
        while left := not_uploaded(self._directory, self._tracked.run_id):
            self._tell_of_upload()
            working = self._uploads and self._waits and not self._told.problem
            if not working or time.monotonic() > until:
                break
            time.sleep(0.1)
        self._tell_of_upload()
        by_hand = shlex.join(["wandb", "sync", *(str(file.parent) for file in left)])
        if not left:
            self._report("Weights & Biases: all of it is uploaded")
        elif self._uploads:
            self._report(
                f"Weights & Biases: the upload goes on for up to {LAST_SECONDS:.0f} s "
                f"({self._directory / LOG_FILE}); "
                f"what is left then: {by_hand}"
            )
        else:
            self._report(f"Weights & Biases: not uploaded: {by_hand}")

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


def _remedy(problem: str) -> str:
    """Return what helps against what the client, the server or the disk says."""
    if os.strerror(errno.ENOSPC) in problem:
        return "Free space in the run directory"
    if re.search(r"API key|logged in|permission|401|403", problem, re.IGNORECASE):
        return "Log in on this machine: wandb login; a key in WANDB_API_KEY comes before that one"
    return "Is it the right server (WANDB_BASE_URL), and reachable from here?"


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
        resume="allow",  # its rows are numbered on from those that the server has
        mode=mode,
        dir=str(run.directory),
        config=run.configuration(),
        settings=wandb.Settings(
            console="off",
            x_transaction_log_flush_interval=FLUSH_SECONDS,
            silent=True,  # it would say that nothing is uploaded, and how that is changed by its own means
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
