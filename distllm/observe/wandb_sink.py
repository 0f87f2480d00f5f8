"""A view of the run in Weights & Biases. It can fail in every way; the run goes on.

Axes are ``trainer/step`` and ``trainer/tokens``; metrics live under ``train/``, ``eval/`` and
``perf/``. The run's id is kept in the run directory, so that a resumed run is one run there too.

A history there can only grow, so a step that is taken again, by a resumed attempt or after a rewind,
keeps the values it was first shown with. What a killed attempt had not delivered is missing there.
``metrics.jsonl`` has every step, and the newest of it.
"""

from __future__ import annotations

import html
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from distllm.config.schema import Config
from distllm.fsio import atomic_write_text
from distllm.observe.metrics import EvalRecord, StepRecord

RUN_ID_FILE = "wandb-run-id"
INIT_SECONDS = 60.0
LOGIN_SECONDS = 30
FINISH_SECONDS = 120.0
STEP_AXIS = "trainer/step"
TOKEN_AXIS = "trainer/tokens"

_log = logging.getLogger(__name__)


class WandbSink:
    """Send records to Weights & Biases, offline or online as ``config.logger.wandb`` says.

    The first failure of any kind is logged as a warning; from then on the sink does nothing.

    Args:
        config: the experiment, shown as the run's configuration.
        run_dir: the run directory; wandb writes below ``run_dir/wandb``.
        shown: the highest step that earlier attempts have shown, by kind of record.
    """

    def __init__(self, config: Config, run_dir: Path, shown: Mapping[str, int] | None = None) -> None:
        self._run: Any = None
        self._shown = dict(shown or {})
        self._quiet = False
        self._guarded(lambda: self._start(config, run_dir))

    def log_step(self, record: StepRecord) -> None:
        """Log ``train/*`` and ``perf/*`` at the step's place on both axes."""
        train = {"loss": record.loss, "lr": record.lr, "grad_norm": record.grad_norm}
        perf = {
            "tokens_per_second": record.tokens_per_second,
            "mfu": record.mfu,
            "data_wait_fraction": record.data_wait_fraction,
            "overhead_fraction": record.overhead_fraction,
            "memory_bytes": record.memory_bytes,
            "eta_seconds": record.eta_seconds,
        }
        values: dict[str, Any] = {
            "train/skipped_steps": record.skipped_steps,
            "trainer/attempt": record.attempt,
        }
        values |= {f"train/{name}": value for name, value in train.items()}
        values |= {f"perf/{name}": value for name, value in perf.items() if value is not None}
        self._log_values("step", record.step, record.tokens, values)

    def log_eval(self, record: EvalRecord) -> None:
        """Log ``eval/*`` at the step's place on both axes."""
        values = {
            "eval/loss": record.loss,
            "eval/perplexity": record.perplexity,
            "eval/bits_per_byte": record.bits_per_byte,
            "eval/seconds": record.seconds,
        }
        self._log_values("eval", record.step, record.tokens, values)

    def log_sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        """Log ``eval/sample``; the dashboard can slide through them by step."""
        if self._is_new("sample", step):
            self._guarded(lambda: self._log_text(step, tokens, prompt + text))

    def log_note(self, step: int, text: str) -> None:
        """Do nothing: notes are events of the run directory, not measurements."""

    def close(self) -> None:
        """Finish the run; what has not arrived after two minutes stays on disk for ``wandb sync``."""
        self._guarded(lambda: self._run.finish())
        self._quiet = True

    def _start(self, config: Config, run_dir: Path) -> None:
        import wandb

        mode: Literal["online", "offline"] = "online" if config.logger.wandb == "online" else "offline"
        self._run = wandb.init(
            project=config.logger.project,
            name=config.name,
            id=_run_id(run_dir),
            resume="allow" if mode == "online" else None,
            mode=mode,
            dir=str(run_dir),
            config=asdict(config),
            settings=wandb.Settings(
                console="off",
                init_timeout=INIT_SECONDS,
                login_timeout=LOGIN_SECONDS,
                finish_timeout=FINISH_SECONDS,
            ),
        )
        self._run.define_metric(STEP_AXIS)
        self._run.define_metric(TOKEN_AXIS)
        self._run.define_metric("train/*", step_metric=TOKEN_AXIS)
        self._run.define_metric("eval/*", step_metric=TOKEN_AXIS)
        self._run.define_metric("eval/loss", step_metric=TOKEN_AXIS, summary="min")
        self._run.define_metric("perf/*", step_metric=STEP_AXIS)

    def _log_values(self, kind: str, step: int, tokens: int, values: dict[str, Any]) -> None:
        if self._is_new(kind, step):
            self._guarded(lambda: self._run.log({STEP_AXIS: step, TOKEN_AXIS: tokens} | values))

    def _is_new(self, kind: str, step: int) -> bool:
        """Whether a record of this kind and step was never shown; from now on it was."""
        if step <= self._shown.get(kind, -1):
            return False
        self._shown[kind] = step
        return True

    def _log_text(self, step: int, tokens: int, text: str) -> None:
        """Log ``text`` as preformatted HTML: a string is not shown in a history, a table is an upload."""
        import wandb

        page = wandb.Html(f"<pre>{html.escape(text)}</pre>")
        self._run.log({STEP_AXIS: step, TOKEN_AXIS: tokens, "eval/sample": page})

    def _guarded(self, action: Callable[[], None]) -> None:
        """Run ``action`` unless the sink has gone quiet; any exception makes it so."""
        if self._quiet:
            return
        try:
            action()
        except Exception as error:
            self._quiet = True
            _log.warning(
                "Weights & Biases failed (%s: %s); training goes on without it, metrics.jsonl has everything",
                type(error).__name__,
                error,
            )


def _run_id(run_dir: Path) -> str:
    """Return the run's id, drawn once and kept in the run directory."""
    path = run_dir / RUN_ID_FILE
    if path.exists():
        return path.read_text(encoding="utf-8").strip()
    run_id = secrets.token_hex(4)
    atomic_write_text(path, run_id + "\n")
    return run_id
