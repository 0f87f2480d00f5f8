"""Nodes that fail under a run, on a real SLURM of four: power, cable, daemon, health, and the clock."""

import json

import pytest
import tiny
from onemachine import wait_for
from slurm_runs import (
    at_step,
    check_complete,
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

ELSEWHERE = "cluster.slurm.exclude=[n4]"
"""Where the run with the time limit is not."""

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster():
    yield from running_cluster(4)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.prepare(tmp_path_factory.mktemp("nodes"))


@pytest.fixture(scope="module")
def expected(root):
    return reference(root)


@pytest.fixture(scope="module")
def limited(cluster, root):
    """A run that meets its time limit while the other tests go on: SLURM looks at limits twice a minute."""
    limits = ("cluster.slurm.time_limit=2", "cluster.slurm.warning_seconds=55", "cluster.nodes=1")
    limits += ("cluster.slurm.nodelist=[n4]",)
    return submit(cluster, root, "limited", *limits, slow(steps=400), "train.max_steps=400")


@pytest.fixture(autouse=True)
def whole_again(cluster, root, limited):
    """After every test all nodes are back, and only the run with the time limit may go on."""
    yield
    for name in cluster.names:
        if name not in cluster.idle() and not cluster.run("ctl", "squeue", "-h", "-w", name).stdout:
            cluster.run("ctl", "scontrol", "update", f"NodeName={name}", "State=RESUME", check=False)
    wait_for(
        lambda: len(cluster.idle()) >= len(cluster.names) - 1,
        120,
        lambda: cluster.run("ctl", "sinfo", "-N", "-l").stdout,
    )


@pytest.fixture(scope="module", autouse=True)
def nothing_left(cluster, root):
    yield
    nothing_runs(cluster, root)


def second_node(root, name):
    """The node of rank 1: the job script runs on the other."""
    return starts(root, name)[0].nodes[1]


def excluded(root, name):
    return History(root / "runs" / name).excluded()


def test_a_node_without_power_is_replaced_and_excluded(cluster, root, expected):
    submit(cluster, root, "power", ELSEWHERE, slow())
    at_step(root, "power", 10)
    lost = second_node(root, "power")
    cluster.crash(lost)
    try:
        check_complete(cluster, root, "power", expected)
    finally:
        cluster.boot(lost)
    first, second = starts(root, "power")[:2]
    assert lost not in second.nodes
    assert second.before == 8
    assert first.end in (None, "failed")
    assert list(excluded(root, "power")) in ([lost], [])


def test_the_node_of_the_job_script_may_be_the_one_that_is_lost(cluster, root, expected):
    submit(cluster, root, "head", ELSEWHERE, slow())
    at_step(root, "head", 10)
    lost = starts(root, "head")[0].nodes[0]
    cluster.crash(lost)
    try:
        check_complete(cluster, root, "head", expected)
    finally:
        cluster.boot(lost)
    first, second = starts(root, "head")
    assert first.end is None, "nobody was left to write it down"
    assert lost not in second.nodes
    assert lost in excluded(root, "head")


def test_a_node_that_is_cut_off_is_shut_out(cluster, root, expected):
    """Its rank lives on without a network; the next start takes the directory over and goes on."""
    submit(cluster, root, "cut", ELSEWHERE, slow(), "cluster.timeout_seconds=20")
    at_step(root, "cut", 10)
    lost = starts(root, "cut")[0].nodes[0]
    cluster.cut(lost)
    try:
        check_complete(cluster, root, "cut", expected)
    finally:
        cluster.mend(lost)
    assert lost not in starts(root, "cut")[-1].nodes
    wait_for(
        lambda: not cluster.processes("distllm.launch.train", "name=cut"),
        180,
        lambda: "\n".join(cluster.processes("distllm.launch.train", "name=cut")),
    )
    assert tiny.exact(tiny.steps(root, "cut")) == expected, "nothing was written after it was shut out"


def test_a_killed_slurmd(cluster, root, expected):
    # Ranks outlive their slurmd: one that waits keeps the run from its end until SLURM has noticed.
    submit(cluster, root, "daemon", ELSEWHERE, "chaos.faults=[slow@1x11,hang@12:1]")
    at_step(root, "daemon", 10)
    lost = starts(root, "daemon")[0].nodes[0]
    daemon = (cluster.state / "run" / f"slurmd.{lost}.pid").read_text().strip()
    cluster.run(lost, "kill", "-KILL", daemon)
    try:
        check_complete(cluster, root, "daemon", expected)
    finally:
        cluster.run(lost, "slurmd", "-c", "-N", lost, "-f", str(cluster.configuration))
    assert lost not in starts(root, "daemon")[-1].nodes


def test_a_node_that_fails_its_health_check_is_named_and_left_out(cluster, root, expected):
    """One node's temporary directory is a full file system."""
    cluster.run("n2", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/var/tmp")
    try:
        floors = [f"cluster.health.min_{what}=0" for what in ("memory_bandwidth", "network_bandwidth")]
        health = [*floors, "cluster.health.enabled=true", "cluster.health.min_free_bytes=1MiB"]
        submit(cluster, root, "sick", *health, "cluster.env.TMPDIR=/var/tmp", ELSEWHERE)
        check_complete(cluster, root, "sick", expected)
    finally:
        cluster.run("n2", "umount", "/var/tmp")
    assert "free in the temporary directory" in excluded(root, "sick")["n2"]
    first, second = starts(root, "sick")
    assert (first.end, second.nodes) == ("elsewhere", ("n1", "n3"))
    assert cluster.job(second.job, "ExcNodeList") == "n[2,4]"


def test_the_limit_itself_and_the_job_goes_on(cluster, root, limited):
    """By now SLURM has sent the warning; the second start is at work, or will be soon."""
    wait_for(lambda: len(starts(root, "limited")) >= 2, 300, lambda: logs(root, "limited"))
    first, second = starts(root, "limited")[:2]
    assert (first.end, first.job, second.job) == ("again", limited, limited)
    assert first.step == second.before > 0
    stopped = [event for event in read_events(root / "runs/limited/ledger.jsonl") if event.kind == "stopped"]
    assert "the time limit is near" in stopped[0].fields["why"]
    assert stopped[0].fields["step"] == first.step
    lines = (root / "runs/limited/metrics.jsonl").read_text().splitlines()
    records = [line for line in map(json.loads, lines) if line["kind"] == "step" and line["attempt"] <= 2]
    steps = [line["step"] for line in records]
    assert steps == sorted(set(steps)), "no step is lost and none is taken twice"
