"""When a run saves, and what it does if a save fails.

A checkpoint is due at intervals (`SaveInterval`) and after the last step. With background saving, training
waits only for the copy of the state; a save that is due while another is still being written waits for that
one first. All ranks learn the outcome of a write before the next step. After a failed save the run continues
and tries again when the next one is due, a limited number of times; the last save of an attempt must succeed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from distllm.checkpoint.mirror import mirror_of
from distllm.checkpoint.retention import Retention
from distllm.checkpoint.save import Saver
from distllm.checkpoint.space import BYTES_PER_PARAM, check_space, checkpoint_bytes
from distllm.config.resolve import Resolved
from distllm.config.schema import Config
from distllm.config.schema_checkpoint import CheckpointConfig
from distllm.dist.engine import Engine
from distllm.dist.topology import Topology
from distllm.errors import StorageError
from distllm.observe.sinks import Sink
from distllm.train.chronicle import Chronicle
from distllm.train.interval import SaveInterval
from distllm.train.run_directory import RunDirectory
from distllm.train.state import TrainState


class Saves:
    """The checkpoints of one attempt.

    Args:
        saver: writes the checkpoints.
        config: when they are due, and how many may fail.
        state: what is saved besides weights and moments.
        engine: the weights and moments.
        chronicle: gets the events and times.
        report: shows a line to the user.
    """

    def __init__(
        self,
        saver: Saver,
        config: CheckpointConfig,
        state: TrainState,
        engine: Engine,
        chronicle: Chronicle,
        report: Callable[[str], None],
    ) -> None:
        self._saver = saver
        self._config = config
        self._state = state
        self._engine = engine
        self._chronicle = chronicle
        self._report = report
        self._interval = SaveInterval(config, state.step)
        self._failures = 0
        self._samples: dict[str, int] = {}

    @property
    def every(self) -> int:
        """The steps between checkpoints that this rank has derived; all ranks use rank 0's."""
        return self._interval.proposal

    def agree(self, every: int, *, written: bool) -> None:
        """Use rank 0's interval from now on; if every rank has ``written`` its share, go on. Collective.

        Raises:
            StorageError: too many saves in a row have failed.
        """
        self._interval.agree(every)
        if written:
            self._settle(must=False, wait=False)

    @property
    def written(self) -> bool:
        """Whether this rank has finished a write that the others do not know about yet."""
        return self._saver.done

    def count_step(self, seconds: float) -> None:
        """Note how long a step took."""
        self._interval.count_step(seconds)

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step`` steps; the same on every rank."""
        return self._interval.due(step) or self._ephemeral_due(step)

    def _ephemeral_due(self, step: int) -> bool:
        every = self._config.ephemeral_every_steps
        return every is not None and step % every == 0

    def save(
        self,
        facts: dict[str, object],
        samples: dict[str, int],
        *,
        must: bool = False,
        requested: bool = False,
    ) -> None:
        """Save the current state. Collective.

        Args:
            facts: what a resume compares the checkpoint with.
            samples: counts of the samples so far, for the ledger.
            must: return only when it is written, because it is the last chance to save.
            requested: a user asked for it, so it is not ephemeral even if only an ephemeral one is due.

        Raises:
            StorageError: it must be written and cannot be, or too many saves in a row have failed.
        """
        began, step = time.perf_counter(), self._state.step
        ordinary = must or requested or self._interval.due(step)
        with self._chronicle.charging("checkpoint"):
            self._settle(must=False)
            self._samples = samples
            self._saver.save(step, self._engine, self._state.to_dict(), facts, ephemeral=not ordinary)
            if must or not self._config.background:
                self._settle(must=must)
        if ordinary:
            self._count(step, time.perf_counter() - began)

    def _count(self, step: int, blocked_seconds: float) -> None:
        formula = self._interval.count_save(step, blocked_seconds)
        if formula is not None:
            self._report(formula)
            self._chronicle.event("interval", step=step, steps=self._interval.proposal, formula=formula)

    def reject_after(self, step: int, why: str) -> None:
        """Mark copies at a URL that are newer than ``step`` as unusable. Collective.

        Raises:
            StorageError: the mark cannot be written.
        """
        self._saver.reject_after(step, why)

    def wait(self) -> None:
        """Return once nothing is being written any more. Collective.

        Raises:
            StorageError: too many saves in a row have failed.
        """
        with self._chronicle.charging("checkpoint"):
            self._settle(must=False)

    def _settle(self, *, must: bool, wait: bool = True) -> None:
        step = self._saver.pending
        if step is None:
            return
        try:
            if wait:
                self._saver.settle()
            elif not self._saver.proceed():
                return
        except StorageError as error:
            self._failures += 1
            self._chronicle.event("save_failed", step=step, why=error.cause)
            if must or self._failures >= self._config.max_failures:
                raise
            self._report(
                f"the checkpoint of step {step} was not written: {error.cause}; earlier ones are kept, and "
                f"training continues and tries again when the next is due ({self._failures} failed in a row, "
                f"{self._config.max_failures} end the run; {error.remedy})"
            )
        else:
            self._failures = 0
            self._chronicle.event("saved", step=step, samples=self._samples)

    def close(self) -> None:
        """Finish a write when the attempt ends with an error; the result is only recorded in the ledger."""
        step = self._saver.pending
        try:
            if self._saver.close():
                self._chronicle.event("saved", step=step, samples=self._samples)
        except StorageError as error:
            self._chronicle.event("save_failed", step=step, why=error.cause)


def check_room(resolved: Resolved, directory: Path) -> str | None:
    """Compare the free space with what the run will keep; see `distllm.checkpoint.space.check_space`."""
    config = resolved.config.checkpoint
    return check_space(
        directory,
        _checkpoint_bytes(resolved),
        Retention.from_config(config),
        max_steps=resolved.max_steps,
        ephemeral=config.ephemeral_every_steps is not None,
    )


def place_checkpoints(config: Config, directory: RunDirectory) -> list[str]:
    """Put the run's checkpoint directory where ``checkpoint.dir`` says; return notes on what was done.

    Called by the process that owns the run directory, before it looks for a checkpoint.

    Raises:
        ConfigError: the run already has checkpoints in another directory.
        CheckpointError: there are checkpoints at the URL, and none can be used.
        DataError: the URL cannot be reached.
        StorageError: the directory cannot be created, or the disk is full.
    """
    mirror = mirror_of(config.checkpoint.dir, config.name)
    if mirror is not None:
        return mirror.bring_newest(directory.checkpoints)
    if config.checkpoint.dir is not None:
        directory.place_checkpoints(Path(config.checkpoint.dir).expanduser() / config.name)
    return []


def build_saves(
    resolved: Resolved,
    directory: Path,
    topology: Topology,
    state: TrainState,
    engine: Engine,
    chronicle: Chronicle,
    sinks: Sequence[Sink],
) -> Saves:
    """Build the part that saves checkpoints, as the configuration's ``checkpoint`` group says."""
    config = resolved.config.checkpoint
    saver = Saver(
        directory,
        topology,
        Retention.from_config(config),
        background=config.background,
        expected_bytes=_checkpoint_bytes(resolved),
        mirror=mirror_of(config.dir, resolved.config.name),
    )

    def report(text: str) -> None:
        for sink in sinks:
            sink.log_note(state.step, text)

    return Saves(saver, config, state, engine, chronicle, report)


def _checkpoint_bytes(resolved: Resolved) -> int:
    ema = 0 if resolved.config.optim.ema is None else 4
    return checkpoint_bytes(resolved.trainable_params, BYTES_PER_PARAM + ema)
