"""`distllm checkpoint`: list a run's checkpoints, verify them, convert one, remove old ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distllm.commands.actions import Actions, run_action
from distllm.commands.arguments import parse_options
from distllm.config.options import option
from distllm.errors import CheckpointError
from distllm.units import format_bytes, format_duration


@dataclass(frozen=True)
class ListOptions:
    """Options of `distllm checkpoint ls`."""

    run: str | None = option(None, "name or directory of the run")
    verify: bool = option(True, "read every byte and compare the digests")
    runs_dir: str = option("runs", "directory that holds run directories")


@dataclass(frozen=True)
class VerifyOptions:
    """Options of `distllm checkpoint verify`."""

    run: str | None = option(None, "name or directory of the run")
    step: int | None = option(None, "only the checkpoint of this step", minimum=0)
    runs_dir: str = option("runs", "directory that holds run directories")


@dataclass(frozen=True)
class ConvertOptions:
    """Options of `distllm checkpoint convert`."""

    run: str | None = option(None, "name or directory of the run")
    step: int | None = option(None, "checkpoint to convert; null takes the newest", minimum=0)
    out: str | None = option(None, "file to write; null means weights-STEP.safetensors in the run directory")
    dtype: Literal["fp32", "bf16", "fp16"] = option("fp32", "number format of the weights")
    runs_dir: str = option("runs", "directory that holds run directories")


@dataclass(frozen=True)
class PruneOptions:
    """Options of `distllm checkpoint prune`. Rules that are not given are those of the run."""

    run: str | None = option(None, "name or directory of the run")
    keep_last: int | None = option(None, "checkpoints kept, newest first", minimum=1)
    keep_every_steps: int | None = option(
        None, "keep the first checkpoint of every interval of this many steps", minimum=1
    )
    keep_best: int | None = option(None, "those of the lowest validation loss that are kept", minimum=0)
    dry_run: bool = option(False, "only say what would go")
    runs_dir: str = option("runs", "directory that holds run directories")


def run(words: Sequence[str]) -> int:
    """Run the action that the first word names."""
    return run_action("checkpoint", "run=NAME ...", _ACTIONS, words)


def _list(words: Sequence[str]) -> None:
    options = parse_options("checkpoint ls", ListOptions, words)
    from distllm.checkpoint.format import list_quarantined
    from distllm.checkpoint.mirror import mirror_of
    from distllm.checkpoint.retention import Retention, kept, summarise
    from distllm.commands.runs import require, run_of

    stored = run_of(require(options.run, "run", "checkpoint ls"), options.runs_dir)
    directory = stored.directory.checkpoints
    found = summarise(directory)
    reasons = kept(found, Retention.from_config(stored.config.checkpoint))
    print(f"{'step':>10}  {'bytes':>10}  {'age':>8}  {'valid loss':>10}  {'verified':<8}  kept")
    for item in found:
        verified = _state(item.path) if options.verify else "-"
        loss = f"{item.valid_loss:.4f}" if item.valid_loss is not None else "-"
        print(
            f"{item.step:>10}  {format_bytes(_size(item.path)):>10}  {_age(item.path):>8}  {loss:>10}  "
            f"{verified:<8}  {reasons.get(item.step, 'goes with the next save')}"
        )
    for path in list_quarantined(directory):
        print(f"set aside: {path} ({format_bytes(_size(path))})")
    mirror = mirror_of(stored.config.checkpoint.dir, stored.config.name)
    if mirror is not None:
        print(f"at {mirror.url}: {', '.join(map(str, mirror.steps())) or 'none'}")


def _state(path: Path) -> str:
    from distllm.checkpoint.format import verify

    try:
        verify(path)
    except CheckpointError:
        return "DAMAGED"
    return "yes"


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def _age(path: Path) -> str:
    return format_duration(max(0.0, time.time() - path.stat().st_mtime))


def _verify(words: Sequence[str]) -> None:
    options = parse_options("checkpoint verify", VerifyOptions, words)
    from distllm.checkpoint.format import list_checkpoints, step_of, verify
    from distllm.commands.runs import require
    from distllm.train.run_directory import locate_run

    directory = locate_run(require(options.run, "run", "checkpoint verify"), options.runs_dir).checkpoints
    chosen = [path for path in list_checkpoints(directory) if options.step in (None, step_of(path))]
    if not chosen:
        raise _absent(directory)
    problems = []
    for path in chosen:
        try:
            info = verify(path)
            strange = _foreign(path)
        except CheckpointError as error:
            print(f"{path.name}: {error.cause}")
            problems.append(path.name)
            continue
        for line in strange:
            print(f"{path.name}: {line}")
        if strange:
            problems.append(path.name)
        else:
            size = format_bytes(info.bytes)
            print(f"{path.name}: {len(info.files)} files, {size}, all digests are correct")
    if problems:
        raise CheckpointError(
            f"{len(problems)} of {len(chosen)} checkpoints cannot be trusted: {', '.join(problems)}",
            where=str(directory),
            remedy="remove files that do not belong there; restore damaged checkpoints from a copy, or "
            "resume: a run sets damaged checkpoints aside and uses an earlier one",
        )


def _absent(directory: Path) -> CheckpointError:
    return CheckpointError(
        "there is no such checkpoint", where=str(directory), remedy="list them: distllm checkpoint ls run=..."
    )


def _foreign(path: Path) -> list[str]:
    from distllm.checkpoint.foreign import foreign_files

    return [f"{file.relative_to(path)} is foreign: {what}" for file, what in foreign_files(path)]


def _convert(words: Sequence[str]) -> None:
    options = parse_options("checkpoint convert", ConvertOptions, words)
    from distllm.checkpoint.convert import write_weights
    from distllm.checkpoint.load import find_checkpoint
    from distllm.commands.runs import require
    from distllm.train.run_directory import locate_run

    directory = locate_run(require(options.run, "run", "checkpoint convert"), options.runs_dir)
    found = find_checkpoint(directory.checkpoints, quarantine=False, step=options.step)
    if found is None:
        raise _absent(directory.checkpoints)
    out = Path(options.out) if options.out else directory.path / f"weights-{found.step}.safetensors"
    facts = {"run": directory.path.name, "step": str(found.step), "tokenizer": str(found.facts["tokenizer"])}
    size = write_weights(found, out, options.dtype, facts)
    print(f"wrote {out}: the weights of step {found.step} in {options.dtype}, {format_bytes(size)}")


def _prune(words: Sequence[str]) -> None:
    options = parse_options("checkpoint prune", PruneOptions, words)
    from distllm.checkpoint.retention import Retention, doomed_of, prune
    from distllm.commands.runs import require, run_of

    stored = run_of(require(options.run, "run", "checkpoint prune"), options.runs_dir)
    config = stored.config.checkpoint
    retention = Retention(
        last=options.keep_last or config.keep_last,
        every_steps=options.keep_every_steps or config.keep_every_steps,
        best=config.keep_best if options.keep_best is None else options.keep_best,
    )
    directory = stored.directory.checkpoints
    if options.dry_run:
        gone = doomed_of(directory, retention)
    else:
        stored.directory.claim()  # refused while a run is training here
        try:
            gone = prune(directory, retention)
        finally:
            stored.directory.release()
    for path in gone:
        print(f"{'would remove' if options.dry_run else 'removed'} {path}")
    print(f"{len(gone)} checkpoints {'would go' if options.dry_run else 'went'}")


_ACTIONS: Actions = {
    "ls": (_list, "the checkpoints of a run: size, age, validation loss, whether whole, why kept"),
    "verify": (_verify, "read every byte, compare the digests, and name files that do not belong there"),
    "convert": (_convert, "the weights alone in one safetensors file, in fp32, bf16 or fp16"),
    "prune": (_prune, "remove what the run's rules, or stricter ones, do not keep"),
}
