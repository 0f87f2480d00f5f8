"""`distllm demo`: raw text to a trained, killed, resumed, exported model, with the commands shown.

Every stage runs the command a user would type, so that nothing works here that does not work alone.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distllm.checkpoint.format import step_path
from distllm.commands.arguments import parse_options
from distllm.config.compose import compose
from distllm.config.options import option
from distllm.config.schema import Config
from distllm.display import stage
from distllm.errors import LaunchError, MissingDependency, TrainingError
from distllm.fsio import read_json_lines
from distllm.units import format_count, format_duration

MIN_PERPLEXITY_RATIO = 5.0
_STEPS_PAST_CHECKPOINT = 3
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Options:
    """Options of `distllm demo`."""

    experiment: str = option("demo", "the experiment to show")
    name: str | None = option(None, "name of the run; null takes the first free of demo, demo-2, ...")
    runs_dir: str = option("runs", "directory that holds run directories")


def run(words: Sequence[str]) -> int:
    """Run the whole demo; 0 if every claim it makes was seen to hold."""
    options = parse_options("demo", Options, words)
    _require_transformers()
    name = options.name or _free_name(Path(options.runs_dir), options.experiment)
    overrides = [f"experiment={options.experiment}", f"name={name}", f"runs_dir={options.runs_dir}"]
    config = compose(overrides)
    run_dir = Path(options.runs_dir) / name
    started = time.monotonic()

    stage("1/5  Prepare: documentation of this Python environment to tokenised shards")
    _run(["prepare", *overrides])

    stage("2/5  Train with DeepSpeed ZeRO-2 on two CPU ranks, and pull the plug half way (kill -9)")
    killed_at = _train_until_killed(overrides, run_dir, config)

    stage("3/5  Resume with the same command")
    _run(["train", *overrides])
    _check_continuation(run_dir, killed_at)

    stage("4/5  Export to Hugging Face, compare logits, generate")
    _run(["export", f"run={run_dir}"])
    _run(["generate", f"run={run_dir}", f"prompt={config.eval.prompt}", "max_tokens=60"])

    stage("5/5  Summary")
    _summarise(run_dir, name, time.monotonic() - started)
    return 0


def _require_transformers() -> None:
    from importlib.util import find_spec

    if find_spec("transformers") is None:
        raise MissingDependency(
            "the demo compares the exported model with transformers, which is not installed",
            where="distllm demo",
            remedy="pip install 'distllm[eval]'",
        )


def _free_name(runs_dir: Path, name: str) -> str:
    """Return the first of name, name-2, name-3 ... that is no run yet: a demo never touches another run."""
    number = 1
    while (runs_dir / (candidate := name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return candidate


def _command(words: Sequence[str]) -> list[str]:
    print(f"$ distllm {shlex.join(words)}", flush=True)
    return [sys.executable, "-m", "distllm.cli", *words]


def _run(words: Sequence[str]) -> None:
    code = subprocess.run(_command(words), check=False).returncode
    if code:
        raise LaunchError(
            f"distllm {words[0]} ended with exit code {code}",
            where=shlex.join(words),
            remedy="its own message is above",
        )


def _train_until_killed(overrides: list[str], run_dir: Path, config: Config) -> int:
    """Train past the checkpoint nearest the middle, then kill the launcher; return the last logged step."""
    assert config.train.max_steps is not None
    every = config.checkpoint.every_steps
    middle = max(every, config.train.max_steps // 2 // every * every)
    training = subprocess.Popen(_command(["train", *overrides]), start_new_session=True)
    saved = step_path(run_dir / "checkpoints", middle)
    while training.poll() is None and not (
        saved.exists() and _last_step(run_dir) >= middle + _STEPS_PAST_CHECKPOINT
    ):
        time.sleep(_POLL_SECONDS)
    if training.poll() is not None:
        raise LaunchError(
            f"training ended by itself with exit code {training.returncode}",
            where=str(run_dir),
            remedy="its own message is above",
        )
    os.kill(training.pid, signal.SIGKILL)
    training.wait()
    time.sleep(1.0)  # the ranks die with their launcher; their last line may still be on its way
    last = _last_step(run_dir)
    print(f"killed (SIGKILL) after step {last}; the newest checkpoint is of step {middle}", flush=True)
    return last


def _last_step(run_dir: Path) -> int:
    return max((line["step"] for line in _lines(run_dir, "step")), default=0)


def _lines(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    return [line for line in read_json_lines(path) if line["kind"] == kind] if path.exists() else []


def _check_continuation(run_dir: Path, killed_at: int) -> None:
    """Compare the steps that both attempts took: the same data, the same loss, to the last bit."""
    first, second = (
        {line["step"]: line for line in _lines(run_dir, "step") if line["attempt"] == attempt}
        for attempt in (1, 2)
    )
    repeated = sorted(first.keys() & second.keys())
    if not repeated or repeated[-1] != killed_at:
        raise TrainingError(
            f"the resumed run did not repeat step {killed_at}",
            where=str(run_dir),
            remedy="report this: a resume must repeat every step after the checkpoint",
        )
    print(f"steps {repeated[0]}-{repeated[-1]} were taken twice, before the kill and after the resume:")
    for step in repeated:
        before, after = first[step], second[step]
        same = all(before[key] == after[key] for key in ("loss", "grad_norm", "batch_digest"))
        print(
            f"  step {step}: loss {before['loss']!r} and {after['loss']!r}, "
            f"batch {before['batch_digest']} and {after['batch_digest']}: {'equal' if same else 'DIFFERENT'}"
        )
        if not same:
            raise TrainingError(
                f"step {step} had a different result after the resume",
                where=str(run_dir),
                remedy="report this: a resume must be exact",
            )


def _summarise(run_dir: Path, name: str, seconds: float) -> None:
    evals, steps = _lines(run_dir, "eval"), _lines(run_dir, "step")
    first, last = evals[0], evals[-1]
    ratio = first["perplexity"] / last["perplexity"]
    speeds = sorted(line["tokens_per_second"] for line in steps)
    print(
        f"validation loss   {first['loss']:.3f} -> {last['loss']:.3f} nats/token\n"
        f"perplexity        {first['perplexity']:.0f} -> {last['perplexity']:.1f}  ({ratio:.0f}x lower)\n"
        f"bits per byte     {first['bits_per_byte']:.3f} -> {last['bits_per_byte']:.3f}\n"
        f"median speed      {format_count(speeds[len(speeds) // 2])} tokens/s\n"
        f"whole demo        {format_duration(seconds)}\n"
        f"run directory     {run_dir}   (config.yaml, explain.json, metrics.jsonl, checkpoints/, samples/)\n"
        f"Hugging Face      {run_dir / 'hf'}\n"
        "\nnext:\n"
        f"  distllm report run={name}\n"
        f"  distllm generate run={name} prompt='Return a list of'\n"
        f"  distllm inspect run={name} step=5\n"
        f"  distllm explain micro_batch_size run={name}"
    )
    if not math.isfinite(ratio) or ratio < MIN_PERPLEXITY_RATIO:
        raise TrainingError(
            f"perplexity fell {ratio:.1f}x, less than the {MIN_PERPLEXITY_RATIO:.0f}x that the demo promises",
            where=str(run_dir),
            remedy="look at the losses in metrics.jsonl",
        )
