"""What a run prints when it starts: derived numbers, its data, its privacy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distllm.config.resolve import Resolved
from distllm.data.batch import Split
from distllm.data.examples import ExampleSplit
from distllm.data.mixture import describe_order
from distllm.data.privacy.canaries import Canaries
from distllm.data.stream import StepStream
from distllm.observe.sinks import Sink
from distllm.train.privacy import PrivacyAccount, describe_account
from distllm.train.state import TrainState


def announce(resolved: Resolved, sinks: Sequence[Sink], state: TrainState, notes: Sequence[str]) -> None:
    """Log the derived numbers to every sink in the first attempt, and ``notes`` in every attempt."""
    # The notes say which attention was chosen.
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


def data_notes(resolved: Resolved, split: Split, stream: StepStream) -> list[str]:
    """Describe the order of samples and how rows are packed, unless they are plain windows of one source."""
    lines = describe_order(stream.order, resolved.steps.before(resolved.max_steps))
    packing = resolved.config.data.packing
    if isinstance(split, ExampleSplit):
        dropped = f", {split.dropped} were too long" if split.dropped else ""
        examples = f"{split.num_examples} examples in {split.num_samples} rows"
        lines.append(f"{examples}, {split.padding:.2%} of them padding{dropped}")
    elif packing != "window":
        lines.append(f"packing {packing}: {split.num_samples} rows, {split.padding:.2%} of them padding")
    return lines


def privacy_notes(resolved: Resolved, account: PrivacyAccount | None, dataset: Path) -> list[str]:
    """Describe the privacy loss of a private run at its end, and say so if canaries cannot be measured."""
    config, notes = resolved.config, list[str]()
    if account is not None:
        notes.append(
            describe_account(account, config.optim.private, resolved.steps.before(resolved.max_steps))
        )
    if config.task.name != "causal_lm" and Canaries.load(dataset) is not None:
        notes.append(f"canaries are not measured: task.name={config.task.name} gives no likelihood of a text")
    return notes
