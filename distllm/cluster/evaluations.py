"""Evaluating checkpoints in separate jobs while training continues."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from distllm.checkpoint.format import list_checkpoints, step_of
from distllm.cluster.history import HOME
from distllm.cluster.render import evaluate_options, render, settings_lines
from distllm.cluster.slurm import NoAnswerError, submit
from distllm.cluster.snapshot import Submission, python_of
from distllm.config.schema import Config
from distllm.errors import LaunchError, StorageError
from distllm.fsio import atomic_write_text

_LOOK_SECONDS = 5.0


class Evaluations:
    """Submits one evaluation for every due checkpoint; they run one after the other.

    Args:
        submission: what was submitted.
        config: its configuration.
    """

    def __init__(self, submission: Submission, config: Config) -> None:
        self._submission, self._config = submission, config
        self._home = submission.run_dir / HOME / "evaluations"
        self._looked_at = float("-inf")
        self._refused = False

    def submit_due(self, *, at_once: bool = False) -> None:
        """Submit what is due; without ``at_once`` only if the last look is some seconds ago.

        A failure is reported once, ends the evaluations, and does not affect the training.
        """
        every = self._config.cluster.slurm.evaluate_every_steps
        if not every or self._refused:
            return
        if not at_once and time.monotonic() - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        paths = list_checkpoints(self._submission.run_dir / "checkpoints")
        for step in sorted(map(step_of, paths)):
            if step % every == 0 and not self._note(step).exists():
                try:
                    self._submit(step)
                except NoAnswerError:
                    return  # tried again at the next look
                except (LaunchError, StorageError) as error:
                    self._refused = True
                    print(f"distllm: checkpoints are not evaluated: {error}", file=sys.stderr, flush=True)
                    return

    def _submit(self, step: int) -> None:
        before = [path.read_text(encoding="ascii").strip() for path in sorted(self._home.glob("*.job"))]
        script = self._home / f"step-{step:09d}.sbatch"
        settings = settings_lines(
            self._config,
            code=self._submission.code,
            python=python_of(self._config),
            directory=self._submission.directory,
        )
        options = evaluate_options(self._config, script.with_suffix(".log"), step)
        arguments = [f"run={self._submission.run_dir}", f"step={step}"]
        atomic_write_text(script, render("evaluate", options, settings, arguments, "a training job"))
        after = [f"--dependency=afterany:{before[-1]}"] if before else []
        atomic_write_text(self._note(step), submit(str(script), after) + "\n")

    def _note(self, step: int) -> Path:
        return self._home / f"step-{step:09d}.job"
