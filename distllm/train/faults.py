"""Fault injection: the faults of ``chaos.faults`` happen to a rank during its forward pass.

Only the external cause is simulated: a signal, a wrong number, a flipped bit, a damaged file. The reaction is
that of every run.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from distllm.checkpoint.format import list_checkpoints
from distllm.config.faults import Fault
from distllm.data.batch import Batch
from distllm.dist.topology import Topology
from distllm.fsio import fsync_directory
from distllm.tasks.base import Task
from distllm.train.state import TrainState

SLOW_SECONDS = 0.5
_SLOW_TIMES = 4.0  # relative to the other ranks, so that it also holds on a busy machine
_SPIKE = 1000.0
_CLOCK_SKEW_SECONDS = 3600.0
_MANTISSA_BIT = 10
_MORE_THAN_THERE_IS = 1 << 60  # bytes


class FaultyTask(Task):
    """A task whose forward pass fails at given steps.

    Args:
        task: the real task.
        faults: the faults of this rank.
        state: holds the current step.
        run_directory: records which faults have happened, for later attempts.
    """

    def __init__(self, task: Task, faults: Sequence[Fault], state: TrainState, run_directory: Path) -> None:
        self._task = task
        self.unit, self.reads_text = task.unit, task.reads_text
        self._faults = faults
        self._state = state
        self._checkpoints = run_directory / "checkpoints"
        self._happened = run_directory / "chaos"
        self._step = 0
        self._factor = 1.0
        self._slow = False

    def weight(self, batch: Batch) -> int:
        """Return the number of loss targets in ``batch``."""
        return self._task.weight(batch)

    def begin(self, model: nn.Module, batches: Sequence[Batch], topology: Topology) -> None:
        """Pass the micro-batches to the real task."""
        self._task.begin(model, batches, topology)

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of ``batch``, after injecting the faults that are due in this step."""
        step = self._state.step + 1
        if step != self._step:
            self._step, self._factor, self._slow = step, 1.0, False
            _lift_file_size()
            for fault in self._faults:
                if fault.step <= step < fault.step + fault.steps and self._is_first_time(fault, step):
                    self._inject(fault, model)
        began = time.perf_counter()
        loss = self._task.loss_sum(model, batch) * self._factor
        if self._slow:
            time.sleep((_SLOW_TIMES - 1) * (time.perf_counter() - began))
        return loss

    def _is_first_time(self, fault: Fault, step: int) -> bool:
        """Record on disk, before the fault happens, that it does; return whether it is the first time."""
        mark = self._happened / f"{fault.kind}@{step}:{fault.rank}"
        self._happened.mkdir(parents=True, exist_ok=True)
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return False
        fsync_directory(self._happened)
        return True

    def _inject(self, fault: Fault, model: nn.Module) -> None:
        match fault.kind:
            case "kill":
                _send(signal.SIGKILL)
            case "term":
                _send(signal.SIGTERM)
            case "stop":
                _send(signal.SIGSTOP)
            case "hang":
                _sleep_for_ever()
            case "skip_collective":
                _skip_next_gather()
            case "clock_skew":
                _set_clock_back()
            case "slow":
                time.sleep(SLOW_SECONDS)
                self._slow = True
            case "nan":
                self._factor = float("nan")
            case "spike":
                self._factor = _SPIKE
            case "bit_flip":
                _flip_bit(next(model.parameters()))
            case "out_of_memory":
                torch.empty(_MORE_THAN_THERE_IS, dtype=torch.uint8, device=next(model.parameters()).device)
            case "disk_full":
                _limit_file_size(self._checkpoints.parent)
            case _:
                _damage(self._checkpoints, fault.kind)
                _send(signal.SIGKILL)


def _send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def _sleep_for_ever() -> NoReturn:
    while True:
        time.sleep(3600)


def _skip_next_gather() -> None:
    """Replace the next all-gather by one that returns at once, without the other ranks."""
    real = torch.distributed.all_gather

    def alone(gathered: list[Tensor], mine: Tensor) -> None:
        torch.distributed.all_gather = real
        for slot in gathered:
            slot.copy_(mine)

    torch.distributed.all_gather = alone  # type: ignore[assignment]


def _set_clock_back() -> None:
    real = time.time
    time.time = lambda: real() - _CLOCK_SKEW_SECONDS


def _flip_bit(weight: Tensor) -> None:
    """Flip one bit of the middle element, whatever the dtype."""
    with torch.no_grad():
        flat = weight.view(-1)
        flat = flat.view({2: torch.int16, 4: torch.int32}[weight.element_size()])
        flat[flat.numel() // 2] ^= 1 << (_MANTISSA_BIT if weight.element_size() == 4 else 0)


def _limit_file_size(run_directory: Path) -> None:
    """Limit files written by this process to the size of the run's largest log, plus a little."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails with EFBIG instead
    logs = [path.stat().st_size for path in run_directory.glob("*.jsonl")]
    limit = max(logs, default=0) + (1 << 15)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _lift_file_size() -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def _damage(checkpoints: Path, kind: str) -> None:
    """Truncate, flip a byte of, or delete the largest file of the newest checkpoint, if there is one."""
    newest = next(iter(list_checkpoints(checkpoints)), None)
    if newest is None:
        return
    victim = max(newest.iterdir(), key=lambda path: path.stat().st_size)
    size = victim.stat().st_size
    if kind == "delete_checkpoint":
        victim.unlink()
    elif kind == "truncate_checkpoint":
        os.truncate(victim, size // 2)
    else:
        with victim.open("r+b") as stream:
            stream.seek(size // 2)
            byte = stream.read(1)[0]
            stream.seek(size // 2)
            stream.write(bytes([byte ^ 1]))
