"""Find the runs that were trained on a document, and the steps.

Shapes: N steps of a run, D documents of a shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distllm.config.schema import Config
from distllm.data.records import TEXT
from distllm.data.shards import Removal, index_of, map_shard
from distllm.errors import DistllmError

if TYPE_CHECKING:
    from distllm.train.excluded import Ranges


@dataclass(frozen=True, slots=True)
class Witness:
    """A run on the dataset, and the steps that saw any of the documents.

    Attributes:
        run: the run directory.
        steps: first and last step of each range of steps whose batches held a piece of a document.
        idle: the same, for steps that changed no weight.
        unknown: why the steps are not known; empty if they are known.
    """

    run: Path
    steps: tuple[tuple[int, int], ...] = ()
    idle: tuple[tuple[int, int], ...] = ()
    unknown: str = ""

    def __str__(self) -> str:
        if self.unknown:
            return f"run {self.run} used this dataset, but its steps cannot be determined: {self.unknown}"
        if not self.steps and not self.idle:
            return f"run {self.run} used this dataset and did not see what was forgotten"
        idle = f"the steps {_ranges(self.idle)} held it and changed no weight"
        if not self.steps:
            return f"run {self.run} was not trained on it: {idle}"
        text = f"run {self.run} was trained on batches that held it, in the steps {_ranges(self.steps)}"
        return f"{text}; {idle}" if self.idle else text


def _ranges(stretches: tuple[tuple[int, int], ...]) -> str:
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in stretches)


def witnesses(runs: Path, directory: Path, removal: Removal) -> Iterator[Witness]:
    """Yield every run below ``runs`` that used the dataset, with the steps that saw the documents.

    A run used the dataset if its configuration names the directory, or if one of its checkpoints
    holds the digest that the dataset has or had.
    """
    from distllm.commands.runs import run_of
    from distllm.train.excluded import excluded_samples

    for file in sorted(runs.glob("*/config.yaml")):
        try:
            config = run_of(str(file.parent), str(runs)).config
        except DistllmError as error:
            yield Witness(file.parent, unknown=error.cause)
            continue
        same_place = Path(config.data.out).resolve() == directory.resolve()
        try:
            excluded = excluded_samples(file.parent / "checkpoints")
            samples, digests = _consumed(file.parent, config, excluded)
            if same_place or any(removal.manifest.follows(digest) for digest in digests):
                step_N = _steps(directory, removal, config, samples, excluded)
                idle_N = np.isin(step_N, idle_steps(file.parent))
                yield Witness(file.parent, _stretches(step_N[~idle_N]), _stretches(step_N[idle_N]))
        except DistllmError as error:
            yield Witness(file.parent, unknown=error.cause)


def _consumed(run: Path, config: Config, excluded: Ranges) -> tuple[int, set[str]]:
    """Return how many samples a run has consumed, and the digests of its datasets.

    Both the checkpoints and the steps that were logged count: a run that was stopped between two
    checkpoints has consumed what it logged.
    """
    from distllm.checkpoint.format import list_checkpoints, read_state
    from distllm.config.steps import StepSizes
    from distllm.observe.sinks import METRICS_FILE, highest_steps
    from distllm.train.excluded import first_sample

    samples, digests = 0, set()
    for path in list_checkpoints(run / "checkpoints"):
        state = read_state(path)
        samples = max(samples, state["train_state"]["samples"])
        digests.add(state["facts"]["dataset"])
    if logged := highest_steps(run / METRICS_FILE).get("step"):
        samples = max(samples, first_sample(logged + 1, StepSizes.from_config(config), excluded))
    return samples, digests


def _steps(
    directory: Path, removal: Removal, config: Config, samples: int, excluded: Ranges
) -> NDArray[np.int64]:
    """Return the steps, ascending, whose samples held a piece of a forgotten document of train."""
    from distllm.config.steps import StepSizes
    from distllm.data.mixture import order_of
    from distllm.data.open import open_split
    from distllm.train.excluded import steps_of

    split = open_split(replace(config, data=replace(config.data, out=str(directory))), "train")
    order = order_of(config, split.sources)
    names = [source.name for source in split.sources]
    positions = list[int]()
    for source, spans in _spans(directory, removal).items():
        number = names.index(source)
        held = {sample for span in spans for sample in split.samples_with(number, *span)}
        for sample in sorted(held):
            positions += order.positions_of(number, sample, samples)
    sizes = StepSizes.from_config(config)
    return steps_of(np.array(positions, dtype=np.int64), sizes, excluded)


def idle_steps(run: Path) -> list[int]:
    """Return the steps of a run that changed no weight: skipped ones, and those without a target.

    Of a step that was repeated, only the last attempt counts.

    Raises:
        DataError: the ledger holds something other than events.
    """
    from distllm.observe.ledger import LEDGER_FILE, read_events

    found = set[int]()
    for event in read_events(run / LEDGER_FILE) if (run / LEDGER_FILE).is_file() else ():
        step = int(event.number("to" if event.kind == "rewind" else "step"))
        if event.kind in ("resumed", "rewind"):
            found = {each for each in found if each <= step}  # later steps are repeated
        elif event.kind in ("skipped", "passed_over"):
            found.add(step)
    return sorted(found)


def _spans(directory: Path, removal: Removal) -> dict[str, list[tuple[int, int, int]]]:
    """Return for each source the shard, first id and end of every forgotten text of the train split."""
    manifest = removal.manifest
    index = index_of(directory, manifest)
    dtype = np.dtype(manifest.token_dtype).newbyteorder("<")
    spans: dict[str, list[tuple[int, int, int]]] = {}
    for place in removal.places:
        if place.split != "train":
            continue
        # samples are found by the ids of the first field; they hold all fields
        field = manifest.fields[place.source][0]
        _, ends_D = map_shard(directory, index[place.source]["train"][place.shard], dtype, field)
        # the EOT that opens a plain document does not belong to its text
        start = (int(ends_D[place.row - 1]) if place.row else 0) + (field == TEXT)
        if start < (stop := int(ends_D[place.row])):
            spans.setdefault(place.source, []).append((place.shard, start, stop))
    return spans


def _stretches(step_N: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    if not step_N.size:
        return ()
    cut_N = np.flatnonzero(np.diff(step_N) > 1) + 1
    return tuple((int(part_N[0]), int(part_N[-1])) for part_N in np.split(step_N, cut_N))
