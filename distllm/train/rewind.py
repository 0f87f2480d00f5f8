"""Going back to a checkpoint from before weights or data that cannot be trusted.

After a streak of skipped steps its samples are excluded: training from the checkpoint repeats everything
before them and then jumps over them (PaLM, arXiv:2204.02311, section 5.1, where the same data did no harm at
another time). After corrupted weights nothing is excluded: the same steps are taken again, now correctly.
"""

from __future__ import annotations

from pathlib import Path

from distllm.checkpoint.format import list_checkpoints, set_aside, step_path, verify
from distllm.checkpoint.load import find_checkpoint, load_checkpoint
from distllm.dist.agree import agree
from distllm.dist.engine import Engine
from distllm.dist.topology import Topology
from distllm.errors import CheckpointError, TrainingError
from distllm.train.state import TrainState


def go_back(
    directory: Path,
    engine: Engine,
    state: TrainState,
    topology: Topology,
    *,
    good_step: int,
    exclude: tuple[int, int] | None,
    max_rewinds: int,
    why: str,
) -> int:
    """Load the newest checkpoint of step ``good_step`` or before; return its step. Collective.

    Newer checkpoints are set aside, so that a run that is killed now does not resume from them.

    Args:
        directory: the run's checkpoint directory.
        engine: gets the weights and moments.
        state: becomes the checkpoint's, but keeps the excluded samples and the number of rewinds.
        topology: this rank's place.
        good_step: the latest step whose weights can be trusted.
        exclude: samples [first, stop) of the global order to exclude.
        max_rewinds: how often a run may go back in total.
        why: what happened, for the error.

    Raises:
        TrainingError: there is no such checkpoint, or the run went back too often.
    """
    excluded = leave_out(state.excluded, exclude)
    rewinds = state.rewinds + 1
    if rewinds > max_rewinds:
        raise TrainingError(
            f"{why}, and the run has gone back {max_rewinds} times already",
            where="guard.max_rewinds",
            remedy="lower optim.lr or raise schedule.warmup_fraction; see the data of a step with: "
            f"distllm inspect run=NAME step={state.step}",
        )
    target = agree(topology, lambda: _newest_good(directory, good_step))
    if target is None:
        raise TrainingError(
            f"{why}, and there is no checkpoint of step {good_step} or before to go back to",
            where=str(directory),
            remedy="lower checkpoint.every_steps; lower optim.lr or raise schedule.warmup_fraction",
        )
    found = find_checkpoint(directory, topology, step=target)
    assert found is not None, "rank 0 has just verified it"
    state.restore(load_checkpoint(found, engine))
    state.excluded, state.rewinds = excluded, rewinds
    agree(topology, lambda: _set_aside_after(directory, target))
    return state.step


def can_go_back(
    directory: Path, state: TrainState, topology: Topology, *, good_step: int, max_rewinds: int
) -> bool:
    """Return whether `go_back` would find a checkpoint, and the run may use it. Collective."""
    return (
        state.rewinds < max_rewinds
        and agree(topology, lambda: _newest_good(directory, good_step)) is not None
    )


def leave_out(excluded: list[list[int]], more: tuple[int, int] | None) -> list[list[int]]:
    """Return the excluded ranges with ``more`` [first, stop) added; ranges never overlap.

    A streak may have jumped over an earlier range, which then lies within the new range and is replaced.
    """
    if more is None:
        return list(excluded)
    first, stop = more
    return [*(known for known in excluded if not first <= known[0] < stop), [first, stop]]


def _newest_good(directory: Path, good_step: int) -> int | None:
    for path in list_checkpoints(directory):
        try:
            step = verify(path).step if path <= step_path(directory, good_step) else None
        except CheckpointError:
            continue  # find_checkpoint sets damaged ones aside when a run starts
        if step is not None:
            return step
    return None


def _set_aside_after(directory: Path, step: int) -> None:
    for path in list_checkpoints(directory):
        if path > step_path(directory, step):
            set_aside(path)
