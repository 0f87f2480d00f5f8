"""A submission and a job that runs it: small programs stand where SLURM's commands and the ranks would."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from programs import Programs

import distllm
from distllm.cluster.snapshot import keep_submission
from distllm.config.compose import compose
from distllm.config.yaml import to_yaml

SCRIPT = """
import os, sys
from distllm.cluster import batch
from distllm.cluster.batch import run_job
batch._RETRY_EVERY_SECONDS = 0.1
sys.exit(run_job(sys.argv[1:], os.environ))
"""
RANK = """
import json, os, pathlib, sys
sys.path.insert(0, {path!r})
from distllm.observe.ledger import Ledger, read_events
run = pathlib.Path({run!r})
plans = json.loads((run / "plans.json").read_text())
number = len(list(run.glob("ran-*")))
told = {{name: value for name, value in os.environ.items() if name.startswith(("DISTLLM", "MASTER"))}}
(run / f"ran-{{number}}").write_text(json.dumps(told))
plan = plans[min(number, len(plans) - 1)]
for step in plan.get("saves", []):
    (run / "checkpoints" / f"step-{{step:09d}}").mkdir(parents=True, exist_ok=True)
if "excludes" in plan:
    (run / "slurm" / "excluded.json").write_text(json.dumps(plan["excludes"]))
if plan.get("wait"):
    import time
    stop = run / "control" / "stop"
    deadline = time.monotonic() + 60
    while not stop.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    plan["event"] = ["stopped", {{"step": 4, "why": "asked to stop: " + json.loads(stop.read_text())["why"]}}]
if "event" in plan:
    kind, fields = plan["event"]
    Ledger(run / "ledger.jsonl", number + 1).event(kind, **fields)
for rank, code in plan.get("exits", {{}}).items():
    (pathlib.Path(os.environ["DISTLLM_EXITS"]) / rank).write_text(str(code))
sys.exit(plan.get("code", 0))
"""


class Job:
    """A submission and a job that runs it, with programs for SLURM."""

    def __init__(self, tmp_path, monkeypatch, *overrides):
        self.run_dir = tmp_path / "run"
        words = ["cluster.health.enabled=false", "cluster.head=localhost", "cluster.nodes=2", *overrides]
        text = to_yaml(asdict(compose(words)))
        self.submission = keep_submission(self.run_dir, words, text, None, code=tmp_path / "code")
        self.submission.script.write_text("#!/bin/bash\n")
        self.programs = Programs(tmp_path / "bin", monkeypatch)
        rank = tmp_path / "rank.py"
        rank.write_text(RANK.format(path=str(Path(distllm.__file__).parents[1]), run=str(self.run_dir)))
        self.health = tmp_path / "health"
        self.health.write_text("")
        health = f"*distllm.cluster.health*) cat {shlex.quote(str(self.health))}; exit 0;;"
        body = f'case "$*" in *SLURMD_NODENAME*) exit 0;; {health} esac\n'
        self.programs.put("srun", f"{body}exec {shlex.quote(sys.executable)} {shlex.quote(str(rank))}")
        self.programs.put("scontrol")
        self.programs.put("sbatch", "echo 77")
        self.programs.put("sinfo", "echo 'n1|idle'; echo 'n2|idle'")
        self.env = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[1-2]"}

    def plan(self, *plans):
        """What the ranks of each start do."""
        (self.run_dir / "plans.json").write_text(json.dumps(plans))

    def begin(self, **env):
        """Start the script."""
        words = [sys.executable, "-c", SCRIPT, str(self.submission.path)]
        return subprocess.Popen(
            words,
            env={**os.environ, **self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, **env):
        """Run the script until it ends, or waits to be ended because SLURM may have queued its job again."""
        script = self.begin(**env)
        told = []
        try:
            for line in script.stdout:
                told.append(line)
                if "asked SLURM to queue the job again" in line:
                    script.terminate()  # as SLURM does; the script must not go on
                    with pytest.raises(subprocess.TimeoutExpired):
                        script.wait(1.5)
                    script.kill()
            return script.wait(60), "".join(told)
        finally:
            script.kill()
            script.wait()
            script.stdout.close()

    @property
    def requeued(self):
        """The jobs that were queued again."""
        return [words[1] for words in self.programs.calls("scontrol") if words[0] == "requeue"]
