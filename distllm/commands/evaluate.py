"""`distllm evaluate`: loss and the task's measures, for one checkpoint or for each new one of a live run."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from distllm.commands.arguments import parse_options
from distllm.commands.models import EARLY_STOPPING
from distllm.config.options import option
from distllm.config.schema_optim import Weights
from distllm.display import printable
from distllm.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from distllm.commands.runs import StoredRun
    from distllm.config.resolve import Resolved
    from distllm.data.examples import ExampleSplit
    from distllm.infer.load import Trained
    from distllm.tasks.base import Task

_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Options:
    """Options of `distllm evaluate`."""

    run: str | None = option(None, "name or directory of the run")
    step: int | None = option(None, "checkpoint to measure; null takes the newest", minimum=0)
    weights: Weights = option("last", "those after the last update, or their average (optim.ema)")
    model: str | None = option(
        None, "Hugging Face folder to measure on the run's data in place of its checkpoints, as a baseline"
    )
    max_tokens: int | None = option(None, "validation tokens; null takes all", unit="count", minimum=1)
    examples: int | None = option(
        200, "validation documents to generate for and to score; 0 scores none, null all", minimum=0
    )
    samples: int = option(0, "of these documents, how many to show: asked, given, right", minimum=0)
    beams: int = option(1, "texts kept by beam search where text is generated; 1 is greedy", minimum=1)
    length_penalty: float = option(1.0, "beam search: above 0 favours long texts, below 0 short ones")
    early_stopping: Literal[True, False, "never"] = option(False, EARLY_STOPPING)
    tasks: tuple[str, ...] = option((), "tasks of the lm-evaluation-harness to run as well")
    task_dir: str | None = option(None, "folder of task files of the harness, beside those it has")
    follow: bool = option(False, "measure every checkpoint as it comes, until the run's last step")
    runs_dir: str = option("runs", "directory that holds run directories")


def run(words: Sequence[str]) -> int:
    """Evaluate a checkpoint on the validation split."""
    options = parse_options("evaluate", Options, words)
    from distllm.commands.runs import require, run_of

    _check_model(options)
    stored = run_of(require(options.run, "run", "evaluate"), options.runs_dir)
    resolved = stored.resolved()
    gc.enable()
    if options.follow:
        _follow(stored, resolved, options)
    else:
        _measure(stored, resolved, options, options.step)
    return 0


def _check_model(options: Options) -> None:
    """Refuse options that choose a checkpoint together with a folder that replaces checkpoints."""
    default = Options()
    chosen = [
        name for name in ("step", "weights", "follow") if getattr(options, name) != getattr(default, name)
    ]
    if options.model is not None and chosen:
        raise ConfigError(
            f"{', '.join(chosen)} choose{'s' if len(chosen) == 1 else ''} a checkpoint of the run, "
            "and model=... is measured in place of one",
            where="distllm evaluate",
            remedy=f"leave out {' and '.join(chosen)}, or model",
        )


def _follow(stored: StoredRun, resolved: Resolved, options: Options) -> None:
    """Evaluate each checkpoint once, in the order in which they appear; removed ones are skipped."""
    from distllm.cluster.outcome import is_done

    done, ended = -1, False
    while done < resolved.max_steps and not ended:
        ended = is_done(stored.directory.path)  # before listing: then the list has the last checkpoint
        coming = [step for step in _steps(stored) if step > done]
        for step in coming:
            try:
                _measure(stored, resolved, options, step)
            except CheckpointError:
                if step in _steps(stored):
                    raise
                print(f"step {step}: removed before it could be evaluated", flush=True)
            done = step
        if not coming and not ended:
            time.sleep(_POLL_SECONDS)


def _steps(stored: StoredRun) -> list[int]:
    """Return the steps of the checkpoints that exist now, in order."""
    from distllm.checkpoint.format import list_checkpoints, step_of

    return sorted(map(step_of, list_checkpoints(stored.directory.checkpoints)))


def _measure(stored: StoredRun, resolved: Resolved, options: Options, step: int | None) -> None:
    """Print the measures of one checkpoint, or of the folder that replaces it."""
    from distllm.data.examples import ExampleSplit
    from distllm.data.open import open_split
    from distllm.dist.topology import Topology
    from distllm.evaluate.perplexity import evaluate_perplexity
    from distllm.infer.load import load_folder, load_trained
    from distllm.tasks.registry import build_task
    from distllm.train.reference import reference_model

    if options.model is None:
        trained = load_trained(stored.directory.checkpoints, resolved, step, options.weights)
    else:
        trained = load_folder(Path(options.model), resolved)
    config, split = resolved.config, open_split(resolved.config, "valid", trained.begin)
    task = build_task(config, resolved.shape, reference_model(resolved))
    measured = evaluate_perplexity(
        trained.model,
        task,
        split,
        trained.tokenizer,
        Topology.single(),
        micro_batch_size=resolved.micro_batch_size,
        max_tokens=options.max_tokens,
    )
    print(f"{options.model or f'step {trained.step}'}: {measured}", flush=True)
    _print_exposure(trained, resolved)
    if isinstance(split, ExampleSplit) and options.examples != 0:
        _print_scores(trained, task, config.task.name, split, options)
    if options.tasks:
        _run_tasks(trained, options)


def _print_scores(trained: Trained, task: Task, name: str, split: ExampleSplit, options: Options) -> None:
    """Print the measures of the task, and some of the examples."""
    from distllm.evaluate.measures import measure_task
    from distllm.evaluate.preferences import measure_preferences
    from distllm.infer.beam import Search
    from distllm.tasks.dpo import DPO

    samples: list[tuple[str, str, str]] = []
    scores: Mapping[str, float | str]
    if isinstance(task, DPO):
        scores = measure_preferences(task, trained.model, split, limit=options.examples)
    else:
        scores = measure_task(
            name,
            trained.model,
            split,
            trained.tokenizer,
            limit=options.examples,
            show=lambda *sample: samples.append(sample),
            search=Search(options.beams, options.length_penalty, options.early_stopping),
        )
    for measure, value in scores.items():
        print(f"  {measure} {value if isinstance(value, str) else f'{value:.4g}'}", flush=True)
    for sample in samples[: options.samples]:
        print("".join(map(_shown, ("asked", "given", "right"), sample)), flush=True)


def _print_exposure(trained: Trained, resolved: Resolved) -> None:
    """Print how far the canaries of the dataset are exposed, if it has any."""
    from distllm.data.mirror import dataset_directory
    from distllm.data.privacy.canaries import Canaries
    from distllm.dist.topology import Topology
    from distllm.evaluate.canaries import CanaryWatch

    canaries = Canaries.load(dataset_directory(resolved.config.data))
    if canaries is None or resolved.config.task.name != "causal_lm":
        return
    watch = CanaryWatch(canaries, trained.tokenizer, Topology.single())
    for times, bits in watch.exposure(trained.model).items():
        print(f"  exposure {times} {bits:.4g} bits", flush=True)


def _run_tasks(trained: Trained, options: Options) -> None:
    """Print the measures of the harness's tasks."""
    from distllm.extras import require

    require("lm_eval", "tasks=", "harness")
    from distllm.evaluate.harness import measure_harness

    folder = None if options.task_dir is None else Path(options.task_dir)
    found = measure_harness(trained.model, trained.tokenizer, options.tasks, folder, options.examples)
    for task, measures in found.items():
        for name, value in measures.items():
            print(f"  {task} {name} {value:.4g}", flush=True)


def _shown(what: str, text: str) -> str:
    """Return a text below its heading, indented."""
    lines = printable(text).splitlines() or ["(nothing)"]
    return f"  {what}\n" + "".join(f"    {line}\n" for line in lines)
