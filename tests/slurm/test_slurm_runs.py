"""`distllm submit` on a real SLURM of three nodes: what it does to jobs, and what jobs make of it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny
from onemachine import wait_for
from slurm_runs import (
    SMALL,
    at_step,
    check_complete,
    distllm,
    ended,
    length,
    logs,
    nothing_runs,
    reference,
    running_cluster,
    slow,
    starts,
    submit,
)

from distllm.cluster.history import History
from distllm.observe.ledger import read_events

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster():
    yield from running_cluster(3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.prepare(tmp_path_factory.mktemp("slurm"))


@pytest.fixture(scope="module")
def expected(root):
    return reference(root)


@pytest.fixture(autouse=True)
def nothing_left(cluster, root):
    """After every test, also one that failed."""
    yield
    nothing_runs(cluster, root)


def test_deepspeed_trains_on_two_nodes_as_on_one(cluster, root):
    words = ["train.max_steps=6", "eval.every_steps=0", "cluster.procs_per_node=2"]
    job = submit(cluster, root, "deepspeed", "engine=zero2", *words, "cluster.health.enabled=true",
                 "cluster.health.min_free_bytes=1MiB")  # fmt: skip
    four = [*words[:2], "name=here", "cluster.procs_per_node=4", "cluster.oversubscribe=true"]
    here = tiny.distllm("train", *tiny.overrides(root, *length(6), *four))
    assert here.returncode == 0, here.stderr
    assert ended(cluster, root, "deepspeed") == "COMPLETED", logs(root, "deepspeed")
    assert tiny.exact(tiny.steps(root, "deepspeed")) == tiny.exact(tiny.steps(root, "here"))
    (start,) = starts(root, "deepspeed")
    assert start.nodes == ("n1", "n2")
    log = (root / "runs/deepspeed/slurm/submissions/001" / f"job-{job}.log").read_text()
    assert "health of n1: good" in log
    assert "collective" in log
    assert len(list((root / "runs/deepspeed/slurm/starts/001").glob("rank-*.log"))) == 4
    assert "6/6" in distllm(cluster, "jobs", f"runs_dir={root}/runs")
    assert "done: step 6" in distllm(cluster, "status", "run=deepspeed", f"runs_dir={root}/runs")
    assert "no rank has logged an error" in distllm(cluster, "why", "run=deepspeed", f"runs_dir={root}/runs")
    told = distllm(cluster, "logs", "run=deepspeed", "rank=all", "lines=1", f"runs_dir={root}/runs")
    assert [line.partition(" |")[0] for line in told.splitlines()] == ["rank 0", "rank 1", "rank 2", "rank 3"]


def test_what_runs_is_the_copy_made_at_submission(cluster, root, expected):
    """A job that waits is not touched by edits of the groups it was composed from."""
    groups = root / "groups" / "optim"
    groups.mkdir(parents=True)
    (groups / "mine.yaml").write_text("lr: 1e-3\n")
    words = [*tiny.overrides(root, *SMALL, *length()), "name=copied", "--config-dir", str(root / "groups")]
    distllm(cluster, "submit", *words, "optim=mine", "cluster.slurm.options=['--begin=now+3']")
    (groups / "mine.yaml").write_text("lr: 5\n")
    check_complete(cluster, root, "copied", expected)


def test_a_warning_ahead_of_the_limit_saves_and_goes_on_bit_equal(cluster, root, expected):
    job = submit(cluster, root, "warned", slow())
    at_step(root, "warned", 10)
    cluster.run("ctl", "scancel", "--batch", "--signal=USR2", job)
    check_complete(cluster, root, "warned", expected)
    first, second = starts(root, "warned")
    assert (first.end, first.job, second.job) == ("again", job, job)
    assert first.step > 8, "it was saved when it was asked, and not at the last interval"
    assert cluster.job(job, "Restarts") == "1"
    assert "2" in distllm(cluster, "jobs", f"runs_dir={root}/runs")


def test_scontrol_requeue_saves_and_goes_on_bit_equal(cluster, root, expected):
    job = submit(cluster, root, "requeued", slow())
    at_step(root, "requeued", 10)
    cluster.run("ctl", "scontrol", "requeue", job)
    check_complete(cluster, root, "requeued", expected)
    first, second = starts(root, "requeued")
    assert first.end is None
    assert second.before > 8


def test_preemption_saves_and_the_job_comes_back_bit_equal(cluster, root, expected):
    submit(cluster, root, "preempted", slow(), "cluster.nodes=2")
    at_step(root, "preempted", 10)
    urgent = ["sbatch", "--parsable", "-p", "high", "--nodes=3", "--exclusive", "--wrap", "sleep 3"]
    cluster.run("ctl", *urgent, "--output=/dev/null")
    check_complete(cluster, root, "preempted", expected)
    first, second = starts(root, "preempted")
    assert first.end is None
    told = distllm(cluster, "why", "run=preempted", f"runs_dir={root}/runs")
    assert (
        f"start 1 on {','.join(first.nodes)}: ended by SLURM: preempted by a job of higher priority" in told
    )
    assert second.before > 8


def test_a_rank_that_is_killed_is_started_again_without_its_node(cluster, root, expected):
    submit(cluster, root, "killed", "chaos.faults=[kill@10:1]", "cluster.slurm.node_failures=1")
    check_complete(cluster, root, "killed", expected)
    first, second = starts(root, "killed")
    assert (first.end, first.step, second.before) == ("failed", 8, 8)
    assert first.suspect == first.nodes[1], "where rank 1 was"
    assert first.suspect not in second.nodes
    assert first.job != second.job, "SLURM would have given the same nodes to the same job"


def test_a_run_that_fails_the_same_way_again_gives_up(cluster, root):
    faults = "chaos.faults=[kill@3:1]"
    job = submit(cluster, root, "hopeless", faults, "cluster.slurm.max_stalls=1")
    assert ended(cluster, root, "hopeless") == "FAILED"
    assert [start.end for start in starts(root, "hopeless")] == ["failed"]
    log = root / "runs/hopeless/slurm/submissions/001" / f"job-{job}.log"
    assert "not started again" in log.read_text()


def test_a_wrong_configuration_in_the_job_is_not_tried_again(cluster, root):
    """The dataset goes away while the job waits: exit code 64 or 65 of the ranks, and one start only."""
    data = root / "data2"
    shutil.copytree(root / "data", data)
    submit(cluster, root, "gone", f"data.out={data}", "cluster.slurm.options=['--begin=now+3']")
    shutil.rmtree(data)
    assert ended(cluster, root, "gone") == "FAILED"
    (start,) = starts(root, "gone")
    assert start.end == "hopeless"
    assert "the configuration" in distllm(cluster, "why", "run=gone", f"runs_dir={root}/runs")


def test_cancel_leaves_no_process_and_nothing_starts_again(cluster, root):
    job = submit(cluster, root, "cancelled", slow(steps=400), "train.max_steps=400", "chain=2",
                 "by=array")  # fmt: skip
    at_step(root, "cancelled", 3)
    distllm(cluster, "cancel", "run=cancelled", f"runs_dir={root}/runs")
    wait_for(lambda: not cluster.run("ctl", "squeue", "-h").stdout.strip(), 60, "the chain goes on")
    told = distllm(cluster, "why", "run=cancelled", f"runs_dir={root}/runs")
    assert "ended by SLURM: cancelled: distllm cancel, by " in told
    states = cluster.run("ctl", "squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T").stdout.split()
    assert states == ["CANCELLED"] * 2
    assert len(starts(root, "cancelled")) == 1
    assert cluster.processes("distllm.launch.train", "name=cancelled") == []
    assert cluster.processes("distllm.cli", "job", str(root)) == []


def test_save_requeue_and_stop_by_verb(cluster, root):
    endless = (slow(steps=400), "train.max_steps=400", "checkpoint.every_steps=400")
    job = submit(cluster, root, "asked", *endless)
    at_step(root, "asked", 2)
    distllm(cluster, "save", "run=asked", f"runs_dir={root}/runs")
    wait_for(lambda: History(root / "runs" / "asked").saved_step() > 0, 30, lambda: logs(root, "asked"))
    assert cluster.job(job, "JobState") == "RUNNING"
    refused = distllm(cluster, "submit", *tiny.overrides(root, *SMALL, *length()), "name=asked", code=64)
    assert f"job {job} of this run directory is already running" in refused
    distllm(cluster, "requeue", "run=asked", f"runs_dir={root}/runs")
    wait_for(lambda: len(starts(root, "asked")) > 1, 120, lambda: logs(root, "asked"))
    distllm(cluster, "stop", "run=asked", f"runs_dir={root}/runs")
    ended(cluster, root, "asked")
    first, second = starts(root, "asked")
    assert (first.end, first.job) == ("again", second.job)
    assert second.end == "stopped"
    assert second.before >= first.before
    kinds = [event.kind for event in read_events(root / "runs/asked/ledger.jsonl")]
    assert kinds[-1] == "stopped"


def test_a_chain_of_jobs_goes_on_where_requeueing_is_forbidden(cluster, root, expected):
    job = submit(cluster, root, "chained", slow(), "chain=2", "cluster.slurm.requeue=false")
    at_step(root, "chained", 10)
    cluster.run("ctl", "scancel", "--batch", "--signal=USR2", job)
    wait_for(
        lambda: not cluster.run("ctl", "squeue", "-h").stdout.strip(), 400, lambda: logs(root, "chained")
    )
    assert tiny.exact(tiny.steps(root, "chained")) == expected
    first, second = starts(root, "chained")
    assert (first.job, second.job) == (job, str(int(job) + 1))


def test_a_sweep_is_an_array_and_only_the_warned_task_comes_back(cluster, root):
    words = [*tiny.overrides(root, *SMALL, *length()), "cluster.nodes=1", "name=sweep", slow(1, 30), "-m"]
    told = distllm(cluster, "submit", *words, "optim.lr=1e-3,5e-4")
    job = told.split("job ")[1].split(":")[0]
    names = [f"sweep.optim.lr={value}" for value in ("0.001", "0.0005")]
    at_step(root, names[1], 5)
    cluster.run("ctl", "scancel", "--batch", "--signal=USR2", f"{job}_1")
    assert [ended(cluster, root, name) for name in names] == ["COMPLETED"] * 2
    assert [len(starts(root, name)) for name in names] == [1, 2]
    assert starts(root, names[1])[0].job == f"{job}_1"


def test_checkpoints_are_evaluated_in_jobs_of_their_own(cluster, root):
    submit(cluster, root, "evaluated", "train.max_steps=16", "cluster.slurm.evaluate_every_steps=16")
    assert ended(cluster, root, "evaluated") == "COMPLETED"
    home = root / "runs/evaluated/slurm/evaluations"
    wait_for(
        lambda: not cluster.run("ctl", "squeue", "-h").stdout.strip(), 200, "the evaluation does not end"
    )
    assert [path.name for path in home.glob("*.job")] == ["step-000000016.job"]
    assert "step 16: validation loss" in (home / "step-000000016.log").read_text()


def test_preparation_as_an_array_writes_what_one_process_writes(cluster, root):
    words = [*tiny.overrides(root, *SMALL), "cluster.nodes=3", f"data.out={root}/array", "name=array"]
    distllm(cluster, "submit", "prepare", *words)
    wait_for(lambda: not cluster.run("ctl", "squeue", "-h").stdout.strip(), 300, "the array does not end")
    tasks = sorted((root / "runs/array.prepare/slurm/submissions/001").glob("job-*.log"))
    assert len(tasks) == 3
    assert (root / "array/manifest.json").exists(), [path.read_text() for path in tasks]
    for path in sorted((root / "data").rglob("*")):
        same = path.is_dir() or path.name == "report.json"
        assert same or path.read_bytes() == (root / "array" / path.relative_to(root / "data")).read_bytes()


def test_a_template_works_by_hand(cluster, root, expected):
    checkout = Path(__file__).resolve().parents[2]
    options = ["--nodes=2", "--ntasks-per-node=1", "--time=10", "--parsable", f"--output={root}/hand-%j.log"]
    words = [*tiny.overrides(root, *SMALL, *length()), "name=hand"]
    env = tiny.environment(DISTLLM_PYTHON=tiny.command()[0], PYTHONPATH=str(checkout))
    done = cluster.run("ctl", "sbatch", *options, str(checkout / "slurm/train.sbatch"), *words, env=env)
    job = done.stdout.strip()
    wait_for(lambda: cluster.job(job, "JobState") == "COMPLETED", 300,
             lambda: (root / f"hand-{job}.log").read_text() + logs(root, "hand"))  # fmt: skip
    assert tiny.exact(tiny.steps(root, "hand")) == expected


def test_all_problems_are_told_at_once_and_nothing_is_queued(cluster, root):
    bad = [
        "cluster.slurm.partition=nromal", "train.tokens_per_step=500", "cluster.head=no-such-host.invalid",
        "optim.lrr=1", "cluster.slurm.time_limit=5",
    ]  # fmt: skip
    told = distllm(cluster, "submit", *tiny.overrides(root, *SMALL, *length(), *bad), "name=bad", code=64)
    for part in ("no partition 'nromal'", "did you mean 'normal'?", "tokens_per_step 500", "does not resolve",
                 "unknown key 'optim.lrr'", "leaves no time before the warning"):  # fmt: skip
        assert part in told, told
    assert not (root / "runs/bad/slurm").exists()
    assert cluster.run("ctl", "squeue", "-h").stdout == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["cluster.nodes=9", "train.tokens_per_step=9216"],
            "9 nodes requested from partition normal, which has 3",
        ),
        (["cluster.slurm.gpus=h100:8"], "8 GPUs per node requested, the nodes of partition normal have 4"),
        (["cluster.slurm.time_limit=3-0"], "allows at most 24h"),
        (["cluster.slurm.cpus_per_rank=5"], "5 CPU cores per node requested"),
        (["cluster.container.kind=apptainer", "cluster.container.image=/no.sif"], "/no.sif does not exist"),
        (["data.out=/nowhere"], "/nowhere holds no prepared dataset"),
        (["checkpoint.resume=must"], "no checkpoint"),
    ],
)
def test_what_the_cluster_cannot_do_is_refused(cluster, root, words, said):
    told = distllm(
        cluster, "submit", *tiny.overrides(root, *SMALL, *length()), *words, "name=refused", "dry_run=true",
        code=64,
    )  # fmt: skip
    assert said in told


def test_a_limit_shorter_than_a_checkpoint_interval_is_refused(cluster, root):
    run = root / "runs" / "timed"
    run.mkdir(parents=True)
    lines = [{"kind": "step", "attempt": 1, "step": step, "time": 100.0 + 60 * step} for step in range(1, 9)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [*tiny.overrides(root, *SMALL, *length()), "name=timed", "cluster.slurm.time_limit=12"]
    told = distllm(cluster, "submit", *words, code=64)
    assert "one checkpoint interval takes 8m00s (8 steps of 60 s, measured" in told
    assert "checkpoint.every_steps=" in told


def test_a_dry_run_prints_a_script_that_bash_accepts(cluster, root):
    words = [*tiny.overrides(root, *SMALL, *length()), "name=dry", "cluster.setup=[\"echo 'a b'\"]"]
    told = distllm(cluster, "submit", *words, "cluster=slurm-gpu8", *SMALL[1:3], "dry_run=true",
                   "cluster.slurm.partition=normal", "cluster.device=cpu", "cluster.slurm.gpus=h100:4",
                   "cluster.slurm.cpus_per_rank=1", "cluster.slurm.memory=1G")  # fmt: skip
    script = told[told.index("#!/usr/bin/env bash") :]
    assert "#SBATCH --gpus-per-node=h100:4" in script
    assert "export NCCL_DEBUG=WARN" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "-"], input=script, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout
    assert not (root / "runs/dry/slurm/submissions").exists()
