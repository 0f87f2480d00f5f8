"""What the loop reports about a step: its record, and sentences about anything unusual."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

from distllm.dist.engine import StepResult
from distllm.heartbeat import read_beat
from distllm.observe.metrics import StepRecord, memory_bytes
from distllm.train.clock import Phases
from distllm.train.run import Run


def report(run: Run, text: str) -> None:
    """Log a sentence about the current step to all sinks."""
    for sink in run.sinks:
        sink.log_note(run.state.step, text)


def report_step(
    run: Run, loss: float, weight: float, digest: str, lr: float, result: StepResult, phases: Phases
) -> None:
    """Log the record of the step that was just counted to all sinks.

    Args:
        run: the run.
        loss: mean over the targets of the global batch, in nats.
        weight: number of those targets.
        digest: identity of the global batch.
        lr: learning rate.
        result: the result of the update.
        phases: how the time was spent.
    """
    state = run.state
    tokens_per_second = weight / phases.total
    flops = run.flops_per_token * tokens_per_second
    remaining = run.resolved.max_steps - state.step
    spent = run.account.spent(state.samples) if run.account else None
    record = StepRecord(
        step=state.step,
        tokens=state.tokens,
        loss=loss,
        lr=lr,
        grad_norm=result.grad_norm,
        tokens_per_second=tokens_per_second,
        mfu=flops / run.peak_flops if run.peak_flops else None,
        data_wait_fraction=phases.data / phases.total,
        overhead_fraction=phases.loop / phases.total,
        memory_bytes=memory_bytes(),
        eta_seconds=remaining * state.seconds / state.step,
        skipped_steps=state.skipped_steps,
        attempt=run.attempt,
        batch_digest=digest,
        damaged_samples=state.damaged_samples,
        rewinds=state.rewinds,
        chain=state.chain,
        epsilon=spent.epsilon if spent else None,
        epsilon_poisson=spent.poisson if spent else None,
    )
    for sink in run.sinks:
        sink.log_step(record)


def report_skipped(
    run: Run, doubt: str, loss: float, grad_norm: float, loss_by_rank: Sequence[float]
) -> None:
    """Report which step was skipped and why, its samples, and the ranks whose own loss is not finite."""
    report(run, f"skipped: {doubt}, loss {loss:.4f}, gradient norm {grad_norm:.4f}")
    run.chronicle.event(
        "skipped",
        step=run.state.step,
        reason=doubt,
        loss=loss,
        grad_norm=grad_norm,
        samples=_samples(run),
        ranks=[rank for rank, own in enumerate(loss_by_rank) if not math.isfinite(own)],
    )


def report_passed_over(run: Run, rows: int, damaged: int) -> None:
    """Report a step without any target, which has changed no weight, and its samples."""
    blocks = f"; {damaged} lie in damaged blocks" if damaged else ""
    report(run, f"step passed over: none of its {rows} samples has a target{blocks}")
    run.chronicle.event("passed_over", step=run.state.step, samples=_samples(run), damaged=damaged)


def _samples(run: Run) -> list[int]:
    """Return the samples [first, stop) of the step that was counted last."""
    stop = run.state.samples
    return [stop - run.sizes.at(run.state.step - 1), stop]


def report_straggler(run: Run, seconds_by_rank: Sequence[float]) -> None:
    """Name the rank that slows the others down, if one does, given each rank's own seconds in a step."""
    straggler = run.pace.slow_rank(seconds_by_rank)
    if straggler is not None and run.topology.is_main:
        beat = read_beat(run.directory.path, straggler.rank)
        host = beat.host if beat is not None else "an unknown machine"
        report(run, f"{straggler}; it runs on {host}")
        run.chronicle.event("straggler", step=run.state.step, host=host, **asdict(straggler))
