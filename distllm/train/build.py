"""The composition root: from a resolved configuration to everything the loop needs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from distllm.checkpoint.load import Found, find_checkpoint, load_checkpoint
from distllm.cluster.hang import Patience
from distllm.config.attention import attention_specs
from distllm.config.compose import Composition
from distllm.config.faults import parse_fault
from distllm.config.resolve import Resolved
from distllm.config.schema import Config
from distllm.data.batch import Split
from distllm.data.mirror import dataset_directory
from distllm.data.mixture import open_stream
from distllm.data.open import open_split
from distllm.data.privacy.canaries import Canaries
from distllm.data.stream import StepStream
from distllm.data.tokenizer import Tokenizer
from distllm.dist.agree import agree, agree_after_work
from distllm.dist.collectives import sum_over_ranks
from distllm.dist.topology import Topology
from distllm.errors import StorageError
from distllm.evaluate.canaries import CanaryWatch
from distllm.export.hf import is_known_to_transformers
from distllm.heartbeat import BEATS_DIRECTORY, HEARTBEAT
from distllm.models.heads import head_of
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
from distllm.train.announce import announce, data_notes, privacy_notes
from distllm.train.chain import Chain
from distllm.train.chronicle import Chronicle
from distllm.train.early_stopping import EarlyStopping
from distllm.train.faults import FaultyTask
from distllm.train.guard import Guard
from distllm.train.pace import OwnTime, Pace
from distllm.train.privacy import PrivacyAccount
from distllm.train.reference import reference_model
from distllm.train.replicas import ReplicaCheck
from distllm.train.resume import check_resume
from distllm.train.run import Run
from distllm.train.run_directory import RunDirectory
from distllm.train.saving import build_saves, check_room, place_checkpoints
from distllm.train.signals import StopRequest
from distllm.train.state import TrainState
from distllm.train.watchdog import start_heartbeat, start_watchdog
from distllm.train.weights import build_run_engine

_PEAK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a run, on this rank.

    Attributes:
        composition: the configuration and where each value came from.
        resolved: its settled numbers.
        topology: this rank's place.
        stop: whether this rank was asked to stop.
        directory: the run directory, which this attempt owns.
        number: number of the attempt, from 1.
        chronicle: its events and times.
    """

    composition: Composition
    resolved: Resolved
    topology: Topology
    stop: StopRequest
    directory: RunDirectory
    number: int
    chronicle: Chronicle


@contextmanager
def open_run(
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
        allow_schedule: continue even if the schedule differs from that of the checkpoint.

    Raises:
        RunDirectoryBusy: another live process trains in the run directory.
        ConfigError: the configuration contradicts the run directory's checkpoint.
        CheckpointError: checkpoints exist and none can be used.
        DataError: the dataset is damaged.
    """
    config = resolved.config
    directory = RunDirectory(Path(config.runs_dir) / config.name)
    number = agree(topology, lambda: _claim(directory))
    if topology.is_main:
        stop.watch(directory.path)
    start_heartbeat(directory.path, topology)
    if not directory.is_supervised:
        patience = Patience(config.cluster.hang_seconds, config.cluster.timeout_seconds)
        start_watchdog(directory.path, topology, patience, number)
        directory.keep()
    chronicle = Chronicle()
    log = RankLog(directory.path, topology.rank, topology.world_size, number)
    try:
        attempt = Attempt(composition, resolved, topology, stop, directory, number, chronicle)
        run = _build(attempt, allow_schedule)
        with ExitStack() as opened:  # a part that fails to close keeps no other open; saves close first
            for sink in reversed(run.sinks):
                opened.callback(sink.close)
            opened.callback(run.stream.close)
            opened.callback(run.saves.close)
            try:
                yield run
            except BaseException as error:
                chronicle.failed(error)  # while the dashboards can still show it
                raise
    except BaseException as error:
        chronicle.failed(error)
        log.log_error(error)
        raise
    finally:
        HEARTBEAT.close()
        log.close()
        if topology.is_main:
            directory.release()


def _claim(directory: RunDirectory) -> int:
    """Become the owner of the run directory; return the number of this attempt."""
    directory.claim()
    if not directory.is_supervised:
        shutil.rmtree(directory.path / BEATS_DIRECTORY, ignore_errors=True)
    return last_attempt(directory.metrics) + 1


def _build(attempt: Attempt, allow_schedule: bool) -> Run:
    """Build everything, and write files of the run only after all that can fail has succeeded."""
    resolved, topology, directory = attempt.resolved, attempt.topology, attempt.directory
    config, chronicle = resolved.config, attempt.chronicle
    dataset = dataset_directory(config.data)

    # The data, and the newest valid checkpoint: may this run continue from it?
    train_split, stream = open_stream(resolved, topology.data_rank, topology.data_ranks)
    found, notes = _find_checkpoint(attempt, train_split, stream, allow_schedule)
    facts: dict[str, object] = {
        "config": redacted(asdict(config)),
        "dataset": train_split.manifest.digest,
        "tokenizer": train_split.manifest.tokenizer_fingerprint,
    }

    # From here on rank 0 records and reports, including failures.
    sinks: list[Sink] = []
    made_with: dict[str, Any] = {}
    if topology.is_main:
        made_with = {**environment(), "device": _device(topology)}
        facts[RUN_ID_FACT] = settle_run_id(directory.path, found.facts if found else {})
        sinks = build_sinks(_tracked(attempt, made_with, facts), resolved.max_steps)
        chronicle.begin(_ledger(directory, attempt.number, sinks), topology.world_size)

    # The model and its optimizer, with the weights and the position from which the run continues.
    notes = [*_kernels(resolved, topology), *notes]
    engine, begun_with, base = build_run_engine(
        resolved, topology, found.facts if found else None, directory.path
    )
    notes += begun_with
    facts |= base
    state = TrainState.from_dict(load_checkpoint(found, engine)) if found else TrainState()

    # Nothing in the directory is replaced before all of that has succeeded.
    if topology.is_main:
        directory.write_configuration(attempt.composition, resolved)
        directory.write_environment(attempt.number, made_with)
    chain = Chain(state, _recorded_steps(directory, topology))
    notes += filter(None, [chain.checkpoint_deviation()])
    chronicle.resumed(state.step)
    account = _account(resolved, stream)
    notes += privacy_notes(resolved, account, dataset)
    announce(resolved, sinks, state, [*data_notes(resolved, train_split, stream), *notes])
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
        stop=attempt.stop,
        attempt=attempt.number,
        flops_per_token=flops_per_token(
            resolved.shape, config.data.seq_len, resolved.trainable_params / resolved.shape.num_params
        ),
        peak_flops=_peak_flops(topology),
        checkpoint_facts=facts,
    )


def _find_checkpoint(
    attempt: Attempt, split: Split, stream: StepStream, allow_schedule: bool
) -> tuple[Found | None, list[str]]:
    """Return the checkpoint from which the run continues, if there is one, and notes about it."""
    resolved, topology, directory = attempt.resolved, attempt.topology, attempt.directory
    placed = agree_after_work(topology, lambda: place_checkpoints(resolved.config, directory))
    found = find_checkpoint(directory.checkpoints, topology)
    notes = agree(
        topology,
        lambda: check_resume(
            found, resolved, directory, split.manifest, stream, allow_schedule=allow_schedule
        ),
    )
    room = agree(topology, lambda: check_room(resolved, directory.checkpoints))
    return found, [*placed, *notes, *filter(None, [room])]


def _kernels(resolved: Resolved, topology: Topology) -> list[str]:
    """Choose the kernels of this process; return notes on what was chosen and why."""
    specs = attention_specs(resolved.config)
    kernels = use_kernels(resolved.config.engine.kernels, topology.device, specs.values())
    notes = [f"kernels: {kernels.name} ({kernels.reason})"]
    for kind, spec in specs.items():
        choice = kernels.attention[spec]
        notes.append(f"attention.{kind}: {choice.name} ({choice.reason})")
    return notes


def _recorded_steps(directory: RunDirectory, topology: Topology) -> Sequence[StepRecord]:
    """Return the steps that earlier attempts recorded; none except on rank 0, which compares them."""
    if not topology.is_main or not directory.metrics.exists():
        return ()
    return read_metrics(directory.metrics).steps


def _tracked(attempt: Attempt, made_with: dict[str, Any], facts: dict[str, object]) -> TrackedRun:
    """Return what dashboards show of the run."""
    resolved = attempt.resolved
    return TrackedRun(
        config=resolved.config,
        directory=attempt.directory.path,
        attempt=attempt.number,
        run_id=str(facts[RUN_ID_FACT]),
        derived={name: found.value for name, found in resolved.derivations.items()},
        environment=made_with,
        dataset=str(facts["dataset"]),
        tokenizer=str(facts["tokenizer"]),
        is_exportable=is_known_to_transformers(resolved.shape, head_of(resolved.config.task.name)),
    )


def _ledger(directory: RunDirectory, attempt: int, sinks: list[Sink]) -> Ledger:
    """Return the ledger of this attempt; if it cannot be written, the sinks say so."""

    def warn(text: str) -> None:
        for sink in sinks:
            # If the disk is full for the metrics too, their own next record reports it.
            with suppress(StorageError):
                sink.log_note(0, text)

    def watch(event: Event) -> None:
        for sink in sinks:
            sink.log_event(event)

    return Ledger(directory.path / LEDGER_FILE, attempt, warn, watch)


def _task(resolved: Resolved, directory: RunDirectory, topology: Topology, state: TrainState) -> Task:
    """Return the objective, with the faults that ``chaos.faults`` injects."""
    compute = torch.bfloat16 if resolved.config.precision.compute == "bf16" else torch.float32
    task = build_task(resolved.config, resolved.shape, reference_model(resolved, compute))
    faults = [
        fault for fault in map(parse_fault, resolved.config.chaos.faults) if fault.rank == topology.rank
    ]
    return FaultyTask(task, faults, state, directory.path) if faults else task


def _canaries(config: Config, dataset: Path, topology: Topology) -> CanaryWatch | None:
    """Return what measures the exposure of canaries; None without them, or without a likelihood of text."""
    found = Canaries.load(dataset)
    if found is None or config.task.name != "causal_lm":
        return None
    return CanaryWatch(found, Tokenizer.load(dataset), topology)


def _account(resolved: Resolved, stream: StepStream) -> PrivacyAccount | None:
    private = resolved.config.optim.private
    if private.noise is None:
        return None
    return PrivacyAccount(private, stream.order, resolved.sequences_per_step)


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


def _device(topology: Topology) -> str:
    """Name the devices of the run."""
    kind = topology.device.type
    name = torch.cuda.get_device_name(topology.device) if kind == "cuda" else kind
    return f"{topology.world_size} x {name}"


def _peak_flops(topology: Topology) -> float | None:
    """Return the peak FLOP/s of all ranks together: measured on CPUs by all at once, published for GPUs."""
    if topology.device.type == "cuda":
        found = find_accelerator(torch.cuda.get_device_name(topology.device))
        return found.bf16_flops * topology.world_size if found else None
    own = measure_matmul_flops(topology.device, torch.float32, seconds=_PEAK_SECONDS)
    return sum_over_ranks([own], topology)[0]
