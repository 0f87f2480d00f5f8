"""`distllm chaos`: inject faults into an experiment on this machine, and score how it survives each."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distllm.commands.arguments import parse_config_arguments
from distllm.commands.settle import settle
from distllm.commands.train import show_configuration
from distllm.config.overrides import split_override
from distllm.config.resolve import Resolved
from distllm.errors import ConfigError

if TYPE_CHECKING:
    from distllm.cluster.drill_runs import Ground

SCORECARD_FILE = "scorecard.json"
FAILED = 70
_MARK = "drills"
_MARGIN_SECONDS = 20.0


def run(words: Sequence[str]) -> int:
    """Run the drills that ``chaos=NAME`` describes; 0 if every fault was survived as required."""
    arguments = parse_config_arguments("chaos", "Inject faults into an experiment and judge it.", words)
    if arguments.show:
        show_configuration(arguments.overrides, arguments.config_dir)
        return 0
    if arguments.multirun:
        raise ConfigError(
            "distllm chaos drills one experiment", where="--multirun", remedy="leave --multirun out"
        )
    _, resolved = settle(arguments.overrides, arguments.config_dir, None, need_dataset=True)
    return _drill(resolved, arguments.overrides, arguments.config_dir)


def _drill(resolved: Resolved, overrides: Sequence[str], config_dir: Path | None) -> int:
    from distllm.cluster.drill_runs import run_drill, run_reference
    from distllm.cluster.drills import plan_drills
    from distllm.cluster.scorecard import Row, as_json, as_text
    from distllm.fsio import atomic_write_json

    config, chaos = resolved.config, resolved.config.chaos
    drills = plan_drills(chaos.kinds, seed=chaos.seed, spacing=chaos.spacing, world_size=resolved.world.size)
    if not drills:
        raise ConfigError(
            "no kind of fault is asked for",
            where="chaos.kinds",
            remedy="choose a schedule: chaos=ci or chaos=full",
        )
    steps = max(drill.steps for drill in drills)
    if steps > resolved.max_steps:
        raise ConfigError(
            f"these faults need {steps} steps, and the run has {resolved.max_steps}",
            where="chaos.spacing",
            remedy="lower chaos.spacing, remove kinds, or set a larger train.max_steps for the drill",
        )
    ground = _ground(resolved, overrides, config_dir)
    print(f"undisturbed: {steps} steps, for comparison", flush=True)
    run_reference(ground, steps)
    rows: list[Row] = []
    for drill in drills:
        print(f"{drill.name}: {', '.join([*map(str, drill.faults), *drill.around])}", flush=True)
        rows += run_drill(ground, drill)
    runs = {name: ground.directory / name for name in ("reference", *(drill.name for drill in drills))}
    facts = {"name": config.name, "seed": chaos.seed, "spacing": chaos.spacing, "ranks": resolved.world.size}
    card = as_json(rows, runs, facts)
    atomic_write_json(ground.directory / SCORECARD_FILE, card)
    print(f"\n{as_text(rows)}\n")
    for name, figures in card["runs"].items():
        print(f"{name:<14}goodput {figures['goodput']:6.1%}  ETTR {figures['ettr']:6.1%}  "
              f"{figures['wall_seconds']:.0f} s")  # fmt: skip
    failed = sum(bool(row.problem) for row in rows)
    print(f"\n{len(rows) - failed} of {len(rows)} survived; written: {ground.directory / SCORECARD_FILE}")
    if failed:
        print(f"distllm: {failed} faults were not survived as required", file=sys.stderr)
    return FAILED if failed else 0


def _ground(resolved: Resolved, overrides: Sequence[str], config_dir: Path | None) -> Ground:
    """Return the experiment to drill, in an empty directory of its own."""
    from distllm.cluster.drill_runs import Ground
    from distllm.cluster.drills import save_every
    from distllm.data.mirror import dataset_directory

    config = resolved.config
    own = {"runs_dir", "name", "train.stop_at_step"}
    return Ground(
        directory=_empty(Path(config.runs_dir) / f"{config.name}-chaos"),
        overrides=[
            *(word for word in overrides if split_override(word)[1] not in own),
            *(["--config-dir", str(config_dir)] if config_dir else []),
            f"checkpoint.every_steps={save_every(config.chaos.spacing)}",
            "guard.fingerprint_every_steps=1",
        ],
        launcher=config.chaos.launcher,
        dataset=dataset_directory(config.data),
        limit_seconds=config.cluster.hang_seconds + _MARGIN_SECONDS,
    )


def _empty(directory: Path) -> Path:
    """Return an empty directory for the runs of a drill; only that of an earlier drill is replaced."""
    if directory.exists() and not (directory / _MARK).exists():
        raise ConfigError(
            f"{directory} exists and was not made by an earlier drill",
            where="name",
            remedy="move it away, or choose another name=...",
        )
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / _MARK).touch()
    return directory.absolute()
