"""What the tests of runs under SLURM share: a small run, submitting it, waiting for what becomes of it."""

import contextlib
import shutil
import tempfile
from pathlib import Path

import onemachine
import pytest
import tiny
from onemachine import Cluster, wait_for

from distllm.cluster.history import History

SMALL = (
    "engine=local", "cluster.nodes=2", "cluster.procs_per_node=1", "cluster.health.enabled=false",
    "cluster.timeout_seconds=60", "cluster.threads_per_rank=1",
)  # fmt: skip
STEPS = 24


def running_cluster(nodes):
    """Yield a SLURM of so many nodes; after it none of its processes is left."""
    if reason := onemachine.missing():
        pytest.skip(reason)  # which programs or rights a cluster on one machine lacks here
    state = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    with Cluster(state, nodes) as running:
        yield running
    assert running.processes(str(state)) == []
    shutil.rmtree(state)


def reference(root):
    """Train the small run without SLURM and without interruption; return its steps."""
    one = ("cluster.threads_per_rank=1", "name=alone", "cluster.procs_per_node=2")
    done = tiny.distllm("train", *tiny.overrides(root, SMALL[0], *one, *length()))
    assert done.returncode == 0, done.stderr
    return tiny.exact(tiny.steps(root, "alone"))


def nothing_runs(cluster, root):
    """Empty the queue and make sure that no rank is left in any node."""
    cluster.run("ctl", "scancel", "--user=root", check=False)
    wait_for(lambda: not cluster.run("ctl", "squeue", "-h").stdout.strip(), 120, "jobs are left")
    assert cluster.processes("distllm.launch.train", str(root)) == []


def length(steps=STEPS):
    return (f"train.max_steps={steps}", "checkpoint.every_steps=8", "eval.every_steps=0")


def distllm(cluster, *words, node="ctl", code=0):
    done = cluster.run(node, *tiny.command(*words), check=False, timeout=300, env=tiny.environment())
    assert done.returncode == code, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def submit(cluster, root, name, *more):
    """Submit the small run and return the number of its job."""
    words = [*tiny.overrides(root, *SMALL, *length()), f"name={name}", *more]
    told = distllm(cluster, "submit", *words)
    return next(line for line in told.splitlines() if line.startswith("job ")).split()[1].rstrip(":")


def slow(first=1, steps=18):
    """A fault that makes every step of the first start half a second longer, so that it can be met.

    The last steps are not slowed down: those of a second start have no need of it.
    """
    return f"chaos.faults=[slow@{first}x{steps}]"


def at_step(root, name, step):
    def reached():
        with contextlib.suppress(FileNotFoundError, ValueError):
            return max(tiny.steps(root, name), default=0) >= step
        return False

    return wait_for(reached, 300, lambda: f"{name} did not reach step {step}\n{logs(root, name)}")


def logs(root, name):
    home = root / "runs" / name / "slurm"
    return "\n".join(f"--- {path}\n{path.read_text()[-3000:]}" for path in sorted(home.rglob("*.log")))


def ended(cluster, root, name, seconds=400):
    """Wait until the run's newest job has left the queue, and return its state."""

    def gone():
        job = (root / "runs" / name / "slurm" / "job").read_text().strip()
        state = cluster.job(job, "JobState")
        return state if state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING") else ""

    return wait_for(gone, seconds, lambda: f"{name} did not end\n{logs(root, name)}")


def starts(root, name):
    return History(root / "runs" / name).starts()


def check_complete(cluster, root, name, expected):
    assert ended(cluster, root, name) == "COMPLETED", logs(root, name)
    assert tiny.exact(tiny.steps(root, name)) == expected
    assert starts(root, name)[-1].end == "done"
