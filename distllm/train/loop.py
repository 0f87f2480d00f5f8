"""The training loop: one optimizer step, from top to bottom, and what is due between steps.

Parallelism is hidden from it: the stream gives each rank its part of the global batch, the engine sums
gradients over ranks and micro-batches, and one small reduction per step makes the ranks agree on what to do.
Every branch below depends only on values that all ranks share, so all ranks take the same branch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from distllm.data.batch import Batch
from distllm.data.digest import batch_digest
from distllm.data.mixture import plan_digest
from distllm.dist.agree import agree
from distllm.dist.collectives import gather_over_ranks, sum_over_ranks
from distllm.errors import Interrupted
from distllm.evaluate.perplexity import evaluate_perplexity
from distllm.heartbeat import HEARTBEAT
from distllm.infer.generate import sample_text
from distllm.train.clock import Phases, StepClock
from distllm.train.microbatches import forward_and_backward
from distllm.train.replicas import Corruption, flipped
from distllm.train.reporting import report, report_passed_over, report_skipped, report_step, report_straggler
from distllm.train.rewind import can_go_back, go_back
from distllm.train.run import Run
from distllm.train.samples import count_samples, require_complete, rows_of


def train(run: Run) -> None:
    """Train from where ``run.state`` stands to the end of this attempt.

    Raises:
        Interrupted: a signal asked to stop; the state is saved.
        TrainingError: the run is not training (see `guard`), or cannot account for its samples.
    """
    state, clock = run.state, StepClock()
    if _evaluation_due(run):  # before the first step, or because an earlier attempt was stopped during one
        evaluate(run)
        if state.step > 0:
            save(run, must=True)  # the checkpoint that was loaded does not record this evaluation
        clock.restart()
    if state.step >= run.resolved.stop_step:
        report(run, f"the run is at step {state.step}: nothing is left to train")
    while state.step < run.resolved.stop_step and not run.stopping.over():
        before = state.step
        save_requested = train_step(run, clock)
        rewound = state.step <= before  # what is due at the step it went back to has been done before
        if not rewound and _do_what_is_due(run, save_requested):
            clock.restart()
    _finish(run)


def _do_what_is_due(run: Run, save_requested: bool) -> bool:
    """Compare weights, evaluate and save, each if it is due; return whether anything was done.

    Weights are compared before a save, so that no checkpoint holds corrupted ones. If they differ, the run
    goes back, and the rest is due again when it reaches this step again.
    """
    last = run.state.step == run.resolved.stop_step
    save_due = last or save_requested or run.saves.due(run.state.step)
    if (save_due or _comparison_due(run)) and not weights_agree(run):
        return True
    evaluation_due = _evaluation_due(run)
    if evaluation_due:
        evaluate(run)
        if run.stopping.over() and not save_due:
            if not weights_agree(run):
                return True
            save_due = True
    if save_due:
        save(run, must=last or run.stopping.over(), requested=save_requested)
    return save_due or evaluation_due


def train_step(run: Run, clock: StepClock) -> bool:
    """Take one optimizer step on the batch at ``state.samples``; return whether a save was requested."""
    state = run.state

    # 1. This rank's micro-batches, which are a pure function of the position in the global order.
    HEARTBEAT.phase("data", state.step)
    clock.mark("loop")
    state.samples, damaged_before = state.next_samples(), run.stream.damaged
    with run.own_time.measured():
        batches = run.stream.step(state.samples, state.step)
    clock.mark("data")

    # 2. What all ranks must agree on before any of them computes.
    agreed = _agree(run, batches, run.stream.damaged - damaged_before)
    if agreed.stop:
        _save_and_stop(run)
    if not agreed.weight:
        _pass_over(run, agreed, clock)
        return agreed.save
    clock.mark("loop")

    # 3. Gradients of the mean loss over the targets of the global batch.
    loss_sum = forward_and_backward(
        run.task, run.engine, batches, agreed.weight, run.topology, run.resolved.config.seed, run.own_time
    )
    clock.mark("compute")

    # 4. The update. All ranks judge it by the same two numbers: the loss and the norm of the gradient.
    HEARTBEAT.phase("update")
    mine = [float(loss_sum), run.replicas.changed_since(), run.own_time.lap()]
    losses, changed, seconds_by_rank = zip(*gather_over_ranks(mine, run.topology), strict=True)
    loss, corruption = sum(losses) / agreed.weight, flipped(changed)
    # The schedule counts rows, not targets: padding and prompts have no loss and must not stretch it.
    lr = run.learning_rate.at(run.sizes.before(state.step + 1) * run.resolved.config.data.seq_len)
    result = run.engine.step(lr, lambda norm: corruption is None and run.guard.doubt(loss, norm) is None)
    clock.mark("update")
    if corruption is not None:
        run.chronicle.count_step(state.step, clock.lap(), wasted=True)
        _restore_weights(run, corruption)
        clock.restart()
        return False

    # 5. Count the step and report it.
    doubt = run.guard.doubt(loss, result.grad_norm) if result.skipped else None
    must_go_back = run.guard.record(doubt, loss, result.grad_norm)
    phases = clock.lap()
    _count(run, agreed, phases, skipped=result.skipped)
    deviation = run.chain.extend(agreed.digest, loss, result.grad_norm)

    if state.step % run.resolved.config.logger.every_steps == 0 or result.skipped:
        report_step(run, loss, agreed.weight, agreed.digest, lr, result, phases)
    if deviation is not None:
        report(run, deviation)
    if doubt is not None:
        report_skipped(run, doubt, loss, result.grad_norm, losses)
    report_straggler(run, seconds_by_rank)
    if must_go_back:
        _exclude_streak(run, finite=doubt != "non_finite")
        clock.restart()
    return agreed.save


@dataclass(frozen=True, slots=True)
class Agreement:
    """What all ranks agree on before they compute a step.

    Attributes:
        weight: loss targets of the global batch; the loss is divided by it.
        digest: identity of the batch's samples and their tokens.
        rows: number of samples.
        damaged: number of damaged samples among them.
        stop: a rank was asked to stop before the step.
        save: a rank was asked to save after it.
    """

    weight: float
    digest: str
    rows: int
    damaged: int
    stop: bool
    save: bool


def _agree(run: Run, batches: Sequence[Batch], damaged: int) -> Agreement:
    """Agree, with one reduction, on everything that ranks must know before they compute. Collective.

    That is the global batch, the save interval by rank 0's clock, which ranks have written their share of a
    checkpoint, and whether any rank was asked to stop or to save. Of ranks that share rows, one counts them.
    """
    counts = run.topology.counts_rows
    weight, digest, rows, damaged_rows, save_every, written, stops, saves = sum_over_ranks(
        [
            counts * sum(map(run.task.weight, batches)),
            counts * batch_digest(batches),
            counts * rows_of(batches),
            counts * damaged,
            run.saves.every if run.topology.is_main else 0,
            run.saves.written,
            run.stop.requested,
            run.stop.save_requested,
        ],
        run.topology,
    )
    run.saves.agree(int(save_every), written=written == run.topology.world_size)
    return Agreement(weight, f"{int(digest):x}", int(rows), int(damaged_rows), stops > 0, saves > 0)


def _pass_over(run: Run, agreed: Agreement, clock: StepClock) -> None:
    """Count a step without any target: it has no loss and changes no weight."""
    clock.mark("loop")
    _count(run, agreed, clock.lap(), skipped=True)
    report_passed_over(run, agreed.rows, agreed.damaged)


def _count(run: Run, agreed: Agreement, phases: Phases, *, skipped: bool) -> None:
    """Count the step that was just taken in all counters of steps, samples and seconds."""
    state = run.state
    HEARTBEAT.count_step(phases.total)
    state.samples += run.sizes.at(state.step)
    state.step += 1
    state.tokens += int(agreed.weight)
    state.seconds += phases.total
    state.count_samples(agreed.rows, agreed.damaged, skipped=skipped)
    if run.account is not None:
        state.epsilon = run.account.spent(state.samples).epsilon
    run.saves.count_step(phases.total)
    run.chronicle.count_step(state.step, phases, wasted=skipped)


def _evaluation_due(run: Run) -> bool:
    """Whether the current state is to be evaluated and has not been."""
    step = run.state.step
    if run.valid is None or run.state.evaluated_step == step:
        return False
    return step % run.resolved.config.eval.every_steps == 0 or step == run.resolved.stop_step


def evaluate(run: Run) -> None:
    """Measure validation perplexity and write a sample. Collective.

    Raises:
        Interrupted: a rank was asked to stop during the evaluation; the state is saved, and the next attempt
            begins with this evaluation.
    """
    with run.chronicle.charging("eval"):
        _log_evaluation(run)
        _log_sample(run)


def _log_evaluation(run: Run) -> None:
    state, settings = run.state, run.resolved.config.eval
    assert run.valid is not None
    started = time.perf_counter()

    def between() -> None:
        HEARTBEAT.phase("evaluate", state.step)
        if sum_over_ranks([run.stop.requested], run.topology)[0]:
            _save_and_stop(run)

    measured = evaluate_perplexity(
        run.engine.model,
        run.task,
        run.valid,
        run.tokenizer,
        run.topology,
        micro_batch_size=run.resolved.micro_batch_size,
        max_tokens=settings.max_tokens,
        between=between,
    )
    record = measured.record(state.step, state.tokens, time.perf_counter() - started)
    if run.canaries is not None:
        record = run.canaries.beside(record, run.engine.model, between)
    state.evaluated_step = state.step
    if state.step % settings.every_steps == 0:  # not at a step where an attempt happens to end
        run.stopping.judge(measured)
    run.checkpoint_facts |= {"valid_loss": measured.loss, "valid_step": state.step}
    for sink in run.sinks:
        sink.log_eval(record)


def _log_sample(run: Run) -> None:
    """Write a continuation of ``eval.prompt``, if the model can generate text."""
    state, settings = run.state, run.resolved.config.eval
    if settings.sample_tokens and run.resolved.config.model.family == "decoder":
        text = sample_text(
            run.engine.model,
            run.tokenizer,
            settings.prompt,
            max_tokens=settings.sample_tokens,
            temperature=settings.temperature,
            seed=run.resolved.config.seed,
        )
        for sink in run.sinks:
            sink.log_sample(state.step, state.tokens, settings.prompt, text)


def save(run: Run, *, must: bool = False, requested: bool = False) -> None:
    """Save a checkpoint that any number of ranks and any ZeRO stage can resume from.

    Args:
        run: the run.
        must: it is the last chance to save: return when it is written, or raise StorageError.
        requested: a user asked for it.
    """
    order = plan_digest(run.resolved.config, run.stream.order, run.state.samples)
    HEARTBEAT.phase("save", run.state.step)
    agree(run.topology, run.directory.require_owned)
    facts = {**run.checkpoint_facts, "order": order}
    run.saves.save(facts, _samples(run), must=must, requested=requested)
    run.stop.clear_save()


def weights_agree(run: Run) -> bool:
    """Compare the weights of all ranks; if they differ, go back to a checkpoint and return False."""
    corruption = run.replicas.after_update()
    if corruption is None:
        run.state.agreed_step = run.state.step
        if _comparison_due(run):
            run.chain.attest(run.replicas.kept)
        return True
    _restore_weights(run, corruption)
    return False


def _comparison_due(run: Run) -> bool:
    every = run.resolved.config.guard.fingerprint_every_steps
    return every > 0 and run.state.step > 0 and run.state.step % every == 0


def _restore_weights(run: Run, corruption: Corruption) -> None:
    """Go back to the newest checkpoint whose weights were equal on all ranks."""
    culprits = " and ".join(f"rank {rank}" for rank in corruption.ranks) or "an unknown rank"
    why = f"corrupted memory on {culprits}: {corruption.what}"
    report(run, why)
    run.chronicle.event("corruption", step=run.state.step, ranks=corruption.ranks, what=corruption.what)
    _go_back(run, run.state.agreed_step, None, why)


def _exclude_streak(run: Run, *, finite: bool) -> None:
    """Go back to before the streak of skipped steps, and exclude its samples from then on.

    Spikes do not end a run: if it cannot go back (any more), the new level of the loss is accepted.
    """
    state = run.state
    why = f"{state.skips_in_a_row} steps in a row were skipped, up to step {state.step}"
    good_step, max_rewinds = state.step - state.skips_in_a_row, run.resolved.config.guard.max_rewinds
    run.saves.wait()
    checkpoints = run.directory.checkpoints
    if finite and not can_go_back(
        checkpoints, state, run.topology, good_step=good_step, max_rewinds=max_rewinds
    ):
        run.guard.accept_level()
        report(run, f"{why}, and the run cannot go back: it continues from here and accepts the new level")
        return
    _go_back(run, good_step, (state.streak_samples, state.samples), why)


def _go_back(run: Run, good_step: int, exclude: tuple[int, int] | None, why: str) -> None:
    """Restore a checkpoint, and save it again with the decision, so that a kill does not undo the rewind."""
    run.chain.forget_after(good_step)
    HEARTBEAT.phase("restore", run.state.step)
    run.saves.wait()  # checkpoints must not change while one is loaded and others are set aside
    run.saves.reject_after(good_step, why)
    with run.chronicle.charging("restart"):
        step = go_back(
            run.directory.checkpoints,
            run.engine,
            run.state,
            run.topology,
            good_step=good_step,
            exclude=exclude,
            max_rewinds=run.resolved.config.guard.max_rewinds,
            why=why,
        )
    run.replicas.forget()
    left_out = f", samples {exclude[0]} to {exclude[1] - 1} are left out" if exclude else ""
    report(run, f"{why}: back to step {step}{left_out}")
    run.chronicle.rewound(step, excluded=exclude, why=why)
    save(run, must=True)


def _samples(run: Run) -> dict[str, int]:
    return count_samples(run.state, run.sizes).to_dict()


def _finish(run: Run) -> None:
    """End the attempt; a completed run must account for all of its samples."""
    state = run.state
    HEARTBEAT.phase("end", state.step)
    early = {"why": run.stopping.why} if run.stopping.over() else {}
    if early:
        report(run, f"{run.stopping.why}: ended at step {state.step}")
    elif state.step < run.resolved.max_steps:
        run.chronicle.end("stopped", step=state.step, why="train.stop_at_step", samples=_samples(run))
        return
    require_complete(count_samples(state, run.sizes), state)
    run.chronicle.end("done", step=state.step, samples=_samples(run), **early)


def _save_and_stop(run: Run) -> NoReturn:
    """Save between two steps, the same ones on every rank, and end the attempt by raising Interrupted."""
    if weights_agree(run):
        save(run, must=True)
    text = f"{run.stop.why}: saved and ended at step {run.state.step}"
    report(run, text)
    run.chronicle.end("stopped", step=run.state.step, why=run.stop.why, samples=_samples(run))
    run.stop.clear_stop()
    stopped = Interrupted(text, where=str(run.directory.path), remedy="run the same command again to go on")
    stopped.everywhere = True
    raise stopped
