"""`distllm submit prepare`: a preparation as an array of jobs that share its work."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distllm.commands.submit_options import Options


def submit_preparation(overrides: list[str], config_dir: Path | None, options: Options, command: str) -> int:
    """Check a preparation and queue it; tasks of an earlier submission that still run are left running."""
    from distllm.cluster.control import Control
    from distllm.cluster.jobs import jobs_of, note_jobs
    from distllm.cluster.render import prepare_options, render, settings_lines
    from distllm.cluster.slurm import queued_jobs, submit
    from distllm.cluster.snapshot import keep_submission, python_of
    from distllm.commands.submit_checks import settle_preparation
    from distllm.commands.submit_options import dependency
    from distllm.config.yaml import to_yaml
    from distllm.fsio import atomic_write_text

    found = settle_preparation(overrides, config_dir, options.after)
    config, run_dir = found.config, found.run_dir.absolute()
    for line in found.notes:
        print(f"{config.name}: {line}")
    place, words = run_dir / "slurm" / "submissions" / "NNN", tuple(found.words)
    code = place / "code"
    if not options.dry_run:
        facts = {"command": command}
        kept = keep_submission(run_dir, found.words, to_yaml(asdict(config)), config_dir, facts=facts)
        place, code, words = kept.path, kept.code, kept.words
    settings = settings_lines(config, code=code, python=python_of(config), directory=Path.cwd())
    script = render("prepare", prepare_options(config, place / "job-%A-%a.log"), settings, words, command)
    if options.dry_run:
        print(script)
        return 0
    path = place / "job.sbatch"
    atomic_write_text(path, script)
    Control(run_dir).forget_all()
    jobs: list[str] = []
    for _ in range(options.chain):
        jobs.append(submit(str(path), dependency(jobs, options)))
        print(f"job {jobs[-1]}: {path} (array of {config.cluster.nodes})")
    before = [job.job for job in queued_jobs(known)] if (known := jobs_of(run_dir)) else []
    note_jobs(run_dir, [*(f"{job}_{task}" for job in jobs for task in range(config.cluster.nodes)), *before])
    print(f"follow: distllm logs -f run={run_dir} rank=all")
    print(f"train when it has succeeded: distllm submit after={jobs[-1]} ...")
    return 0
