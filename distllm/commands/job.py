"""`distllm job`: the program that the job scripts of slurm/ run on the first node of a job."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence


def run(words: Sequence[str]) -> int:
    """Run the submissions named on the command line, or a configuration given on it, in this job."""
    gc.enable()
    from distllm.cluster.batch import run_job
    from distllm.cluster.snapshot import is_submission

    if not words or not all(map(is_submission, words)):
        words = [str(_submission_here(words))]
    return run_job(words, os.environ)


def _submission_here(words: Sequence[str]) -> str:
    """Return the submission that this job made when it first started, or make it now.

    A job template that was passed to sbatch by hand arrives here with a configuration.
    """
    from dataclasses import asdict
    from pathlib import Path

    from distllm.cluster.jobs import job_of
    from distllm.cluster.render import train_script
    from distllm.cluster.snapshot import keep_submission, submissions_of
    from distllm.commands.arguments import parse_config_arguments
    from distllm.commands.submit_checks import settle_submission
    from distllm.config.compose import compose
    from distllm.config.yaml import to_yaml
    from distllm.fsio import atomic_write_text

    arguments = parse_config_arguments("job", "Run a configuration in this job.", words)
    config = compose(arguments.overrides, config_dir=arguments.config_dir)
    run_dir = Path(config.runs_dir) / config.name
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and job_of(run_dir) == os.environ.get(
        "SLURM_JOB_ID"
    ):
        return str(submissions_of(run_dir)[-1].absolute())
    found = settle_submission(arguments.overrides, arguments.config_dir)
    text = to_yaml(asdict(found.config))
    kept = keep_submission(found.run_dir, found.words, text, arguments.config_dir)
    made_by = f"sbatch train.sbatch {' '.join(words)}"
    script = train_script(found.config, kept.path, kept.code, [str(kept.path)], None, made_by)
    atomic_write_text(kept.script, script)
    return str(kept.path)
