"""The composition root: from a resolved configuration to everything the loop needs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from distllm.checkpoint.load import find_checkpoint, load_checkpoint
from distllm.cluster.hang import Patience
from distllm.config.attention import asked_by
from distllm.config.compose import Composition
from distllm.config.faults import parse_fault
from distllm.config.resolve import Resolved
from distllm.config.schema import Config
from distllm.data.batch import Split
from distllm.data.examples import ExampleSplit
from distllm.data.mirror import dataset_directory
from distllm.data.mixture import describe_order, open_stream
from distllm.data.open import open_split
from distllm.data.privacy.canaries import Canaries
from distllm.data.stream import StepStream
from distllm.data.tokenizer import Tokenizer
from distllm.dist.agree import agree, agree_after_work
from distllm.dist.collectives import sum_over_ranks
from distllm.dist.topology import Topology
from distllm.errors import StorageError
from distllm.evaluate.canaries import CanaryWatch
from distllm.heartbeat import BEATS_DIRECTORY, HEART
from distllm.observe.ledger import LEDGER_FILE, Event, Ledger
from distllm.observe.metrics import StepRecord
from distllm.observe.open import build_sinks
from distllm.observe.rank_log import RankLog
from distllm.observe.sinks import Sink, last_attempt, read_metrics
from distllm.observe.tracked import RUN_ID_FACT, TrackedRun, settle_run_id
from distllm.ops.backend import use_kernels
from distllm.ops.peak import measure_matmul_flops
from distllm.optim.schedule import LearningRate
from distllm.plan.flops import flops_per_token
from distllm.plan.hardware import find_accelerator
from distllm.provenance import environment
from distllm.redact import redacted
from distllm.tasks.base import Task
from distllm.tasks.registry import build_task
from distllm.train.chain import Chain
from distllm.train.chronicle import Chronicle
from distllm.train.early_stopping import EarlyStopping
from distllm.train.faults import FaultyTask
from distllm.train.guard import Guard
from distllm.train.pace import OwnTime, Pace
from distllm.train.privacy import PrivacyAccount, describe_account
from distllm.train.reference import reference_model
from distllm.train.replicas import ReplicaCheck
from distllm.train.resume import check_resume
from distllm.train.run import Run
from distllm.train.run_directory import RunDirectory
from distllm.train.saving import build_saves, check_room, place_checkpoints
from distllm.train.signals import StopRequest
from distllm.train.state import TrainState
from distllm.train.vigil import begin_vigil, watch_oneself
from distllm.train.weights import engine_of

_PEAK_SECONDS = 0.2


@contextmanager
def opened_run(
    composition: Composition,
    resolved: Resolved,
    topology: Topology,
    stop: StopRequest,
    *,
    allow_schedule: bool = False,
) -> Iterator[Run]:
    """Build a run, resume it if it has a checkpoint, and close what was opened. Collective.

    Args:
        composition: the configuration and where each value came from.
        resolved: its settled numbers.
        topology: this rank's place.
        stop: whether this rank was asked to stop.
        allow_schedule: go on although the schedule is no longer that of the checkpoint.

    Raises:
        RunDirectoryBusy: another live process trains in the run directory.
        ConfigError: the configuration contradicts the run directory's checkpoint.
        CheckpointError: checkpoints exist and none can be used.
        DataError: the dataset is damaged.
    """
    config = resolved.config
    directory = RunDirectory(Path(config.runs_dir) / config.name)
    attempt = agree(topology, lambda: _claim(directory))
    if topology.is_main:
        stop.watch(directory.path)
    begin_vigil(directory.path, topology)
    if not directory.is_supervised:
        patience = Patience(config.cluster.hang_seconds, config.cluster.timeout_seconds)
        watch_oneself(directory.path, topology, patience, attempt)
        directory.keep()
    chronicle = Chronicle()
    log = RankLog(directory.path, topology.rank, topology.world_size, attempt)
    try:
        run = _build(
            composition,
            resolved,
            topology,
            stop,
            directory,
            attempt,
            chronicle,
            allow_schedule=allow_schedule,
        )
        try:
            yield run
        finally:
            run.saves.close()
            run.stream.close()
            for sink in run.sinks:
                sink.close()
    except BaseException as error:
        chronicle.failed(error)
        log.tell(error)
        raise
    finally:
        HEART.close()
        log.close()
        if topology.is_main:
            directory.release()


def _claim(directory: RunDirectory) -> int:
    """Own the run directory; return the number of this attempt."""
    directory.claim()
    if not directory.is_supervised:
        shutil.rmtree(directory.path / BEATS_DIRECTORY, ignore_errors=True)
    return last_attempt(directory.metrics) + 1


def _build(
    composition: Composition,
    resolved: Resolved,
    topology: Topology,
    stop: StopRequest,
    directory: RunDirectory,
    attempt: int,
    chronicle: Chronicle,
    *,
    allow_schedule: bool,
) -> Run:
    config = resolved.config
    dataset = dataset_directory(config.data)
    train_split, stream = open_stream(resolved, topology.data_rank, topology.data_ranks)
    facts: dict[str, object] = {
        "config": redacted(asdict(config)),
        "dataset": train_split.manifest.digest,
        "tokenizer": train_split.manifest.tokenizer_fingerprint,
    }
    placed = agree_after_work(topology, lambda: place_checkpoints(config, directory))
    found = find_checkpoint(directory.checkpoints, topology)
    notes = agree(
        topology,
        lambda: check_resume(
            found, resolved, directory, train_split.manifest, stream, allow_schedule=allow_schedule
        ),
    )
    room = agree(topology, lambda: check_room(resolved, directory.checkpoints))
    notes = [*placed, *notes, *filter(None, [room])]
    sinks: list[Sink] = []
    if topology.is_main:
        made_with = {**environment(), "device": _device(topology)}
        facts[RUN_ID_FACT] = settle_run_id(directory.path, found.facts if found else {})
        sinks = build_sinks(_tracked(resolved, directory, attempt, made_with, facts), resolved.max_steps)
        chronicle.begin(_ledger(directory, attempt, sinks), topology.world_size)
    notes = [*_kernels(resolved, topology), *notes]
    engine, begun_with, base = engine_of(resolved, topology, found.facts if found else None, directory.path)
    notes += begun_with
    facts |= base
    state = TrainState.from_dict(load_checkpoint(found, engine)) if found else TrainState()
    if topology.is_main:
        directory.write_configuration(composition, resolved)
        directory.write_environment(attempt, made_with)
    chain = Chain(state, _recorded_steps(directory, topology))
    notes += filter(None, [chain.checkpoint_deviation()])
    chronicle.resumed(state.step)
    notes += _privacy_notes(resolved, account := _account(resolved, stream), dataset)
    _announce(resolved, sinks, state, [*_describe_data(resolved, train_split, stream), *notes])
    valid = open_split(config, "valid") if config.eval.every_steps else None
    return Run(
        resolved=resolved,
        sizes=resolved.steps,
        directory=directory,
        topology=topology,
        task=_task(resolved, directory, topology, state),
        engine=engine,
        stream=stream,
        valid=valid,
        tokenizer=Tokenizer.load(dataset),
        canaries=_canaries(config, dataset, topology),
        account=account,
        learning_rate=_learning_rate(resolved),
        state=state,
        guard=Guard(config.guard, state),
        stopping=EarlyStopping(config.train.early_stopping, state, topology, valid),
        replicas=ReplicaCheck(engine, topology),
        chain=chain,
        saves=build_saves(resolved, directory.checkpoints, topology, state, engine, chronicle, sinks),
        pace=Pace(config.cluster.straggler_factor),
        own_time=OwnTime(topology.device),
        chronicle=chronicle,
        sinks=sinks,
        stop=stop,
        attempt=attempt,
        flops_per_token=flops_per_token(
            resolved.shape, config.data.seq_len, resolved.trainable_params / resolved.shape.num_params
        ),
        peak_flops=_peak_flops(resolved, topology),
        checkpoint_facts=facts,
    )


def _kernels(resolved: Resolved, topology: Topology) -> list[str]:
    """Choose the kernels of this process; return what was chosen, and why."""
    asked = asked_by(resolved.config)
    kernels = use_kernels(resolved.config.engine.kernels, topology.device, asked.values())
    notes = [f"kernels: {kernels.name} ({kernels.reason})"]
    for kind, one in asked.items():
        choice = kernels.attention[one]
        notes.append(f"attention.{kind}: {choice.name} ({choice.reason})")
    return notes


def _recorded_steps(directory: RunDirectory, topology: Topology) -> Sequence[StepRecord]:
    """Return the steps that earlier attempts recorded, on the rank that compares them."""
    if not topology.is_main or not directory.metrics.exists():
        return ()
    return read_metrics(directory.metrics).steps


def _tracked(
    resolved: Resolved,
    directory: RunDirectory,
    attempt: int,
    made_with: dict[str, Any],
    facts: dict[str, object],
) -> TrackedRun:
    """Return what dashboards are told about the run."""
    return TrackedRun(
        config=resolved.config,
        directory=directory.path,
        attempt=attempt,
        run_id=str(facts[RUN_ID_FACT]),
        derived={name: found.value for name, found in resolved.derivations.items()},
        environment=made_with,
        dataset=str(facts["dataset"]),
        tokenizer=str(facts["tokenizer"]),
    )


def _ledger(directory: RunDirectory, attempt: int, sinks: list[Sink]) -> Ledger:
    """Return the ledger of this attempt, whose own failure the sinks are told."""

    def tell(text: str) -> None:
        for sink in sinks:
            # Where the disk is full for the metrics too, their own next record says so.
            with suppress(StorageError):
                sink.log_note(0, text)

    def watch(event: Event) -> None:
        for sink in sinks:
            sink.log_event(event)

    return Ledger(directory.path / LEDGER_FILE, attempt, tell, watch)


def _task(resolved: Resolved, directory: RunDirectory, topology: Topology, state: TrainState) -> Task:
    """Return the objective, and make it go wrong where ``chaos.faults`` asks for it."""
    compute = torch.bfloat16 if resolved.config.precision.compute == "bf16" else torch.float32
    task = build_task(resolved.config, resolved.shape, reference_model(resolved, compute))
    faults = [
        fault for fault in map(parse_fault, resolved.config.chaos.faults) if fault.rank == topology.rank
    ]
    return FaultyTask(task, faults, state, directory.path) if faults else task


def _canaries(config: Config, dataset: Path, topology: Topology) -> CanaryWatch | None:
    """Return what measures the exposure of canaries, where the task has a likelihood of text."""
    found = Canaries.load(dataset)
    if found is None or config.task.name != "causal_lm":
        return None
    return CanaryWatch(found, Tokenizer.load(dataset), topology)


def _account(resolved: Resolved, stream: StepStream) -> PrivacyAccount | None:
    private = resolved.config.optim.private
    return (
        None if private.noise is None else PrivacyAccount(private, stream.order, resolved.sequences_per_step)
    )


def _privacy_notes(resolved: Resolved, account: PrivacyAccount | None, dataset: Path) -> list[str]:
    """Say what a private run gives away, and where planted canaries are not watched."""
    config, notes = resolved.config, list[str]()
    if account is not None:
        notes.append(
            describe_account(account, config.optim.private, resolved.steps.before(resolved.max_steps))
        )
    if config.task.name != "causal_lm" and Canaries.load(dataset) is not None:
        notes.append(f"canaries are not watched: task.name={config.task.name} gives no likelihood of a text")
    return notes


def _learning_rate(resolved: Resolved) -> LearningRate:
    config = resolved.config
    return LearningRate(
        name=config.schedule.name,
        peak=config.optim.lr,
        warmup_tokens=resolved.warmup_tokens,
        total_tokens=resolved.total_tokens,
        tokens_per_step=config.train.tokens_per_step,
        final_fraction=config.schedule.final_lr_fraction,
        decay_fraction=config.schedule.decay_fraction,
    )


def _describe_data(resolved: Resolved, split: Split, stream: StepStream) -> list[str]:
    """Say what the run's samples are where that is not plain windows of one source."""
    lines = describe_order(stream.order, resolved.steps.before(resolved.max_steps))
    packing = resolved.config.data.packing
    if isinstance(split, ExampleSplit):
        dropped = f", {split.dropped} were too long" if split.dropped else ""
        examples = f"{split.num_examples} examples in {split.num_samples} rows"
        lines.append(f"{examples}, {split.padding:.2%} of them padding{dropped}")
    elif packing != "window":
        lines.append(f"packing {packing}: {split.num_samples} rows, {split.padding:.2%} of them padding")
    return lines


def _announce(resolved: Resolved, sinks: list[Sink], state: TrainState, notes: list[str]) -> None:
    """Tell every sink, once, every number that was derived and where the run goes on."""
    # The choice of attention is among the notes, which every attempt tells.
    numbers = [name for name in resolved.derivations if not name.startswith("attention.")]
    everything = sorted(numbers, key=lambda name: name != "num_params")
    geometry = ("micro_batch_size", "grad_accum_steps")
    shown = everything if state.step == 0 else geometry if resolved.memory_limit else ()
    lines = [
        f"{name} = {resolved.derivations[name].value}  ({resolved.derivations[name].formula})"
        for name in shown
    ]
    for text in [*lines, *notes]:
        for sink in sinks:
            sink.log_note(state.step, text)


def _device(topology: Topology) -> str:
    """Name the devices of the run."""
    kind = topology.device.type
    name = torch.cuda.get_device_name(topology.device) if kind == "cuda" else kind
    return f"{topology.world_size} x {name}"


def _peak_flops(resolved: Resolved, topology: Topology) -> float | None:
    """Return the peak of all ranks together: measured at the same time on CPUs, published for GPUs."""
    if topology.device.type == "cuda":
        found = find_accelerator(torch.cuda.get_device_name(topology.device))
        return found.bf16_flops * topology.world_size if found else None
    own = measure_matmul_flops(topology.device, torch.float32, seconds=_PEAK_SECONDS)
    return sum_over_ranks([own], topology)[0]
