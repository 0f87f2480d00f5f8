"""What tests of the topology leave open: how variables are preferred, and what needs none of them."""

import os

import pytest

from distllm import machine
from distllm.environment import RankEnvironment, set_rendezvous
from distllm.errors import LaunchError
from distllm.machine import available_cores

RENDEZVOUS = {"MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
SRUN = {"SLURM_PROCID": "0", "SLURM_NTASKS": "6", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0", **RENDEZVOUS}


def read(**env):
    return RankEnvironment.read(env)


def refusal(**env):
    with pytest.raises(LaunchError) as caught:
        RankEnvironment.read(env)
    assert caught.value.where == "environment of the rank"
    assert caught.value.remedy
    return caught.value.cause


@pytest.mark.parametrize(
    "env",
    [{}, {"PATH": "/bin", **RENDEZVOUS}, {"LOCAL_RANK": "3"}, {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}],
)
def test_outside_a_launcher_there_is_no_rank(env):
    assert RankEnvironment.read(env) is None


def test_a_single_rank_needs_nobody_to_meet():
    assert read(RANK="0", WORLD_SIZE="1") == RankEnvironment(0, 1, 0, 1)
    assert read(SLURM_PROCID="0", SLURM_NTASKS="1", SLURM_LOCALID="0", SLURM_STEP_ID="0") == RankEnvironment(
        0, 1, 0, 1
    )


def test_all_that_is_missing_to_meet_is_named_at_once():
    assert (
        refusal(RANK="0", WORLD_SIZE="2")
        == "MASTER_ADDR and MASTER_PORT not set although there are several ranks"
    )
    assert "MASTER_PORT not set" in refusal(RANK="0", WORLD_SIZE="2", MASTER_ADDR="n1", MASTER_PORT="")


STEP = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": "3", "SLURM_JOB_ID": "70"}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n[1-3,07],login", "n1"), ("login,n1", "login"), ("r[02-03]n[11-12]", "r02n11"), ("gpu-7", "gpu-7")],
)
def test_tasks_of_an_srun_meet_at_the_first_node_of_their_step(nodes, first):
    env = {**STEP, "SLURM_STEP_NODELIST": nodes}
    set_rendezvous(env)
    assert env["MASTER_ADDR"] == first
    assert env["MASTER_PORT"] == "13517"
    again = {**env, "MASTER_ADDR": "mine", "SLURM_RESTART_COUNT": "1"}
    again.pop("MASTER_PORT")
    set_rendezvous(again)
    assert (again["MASTER_ADDR"], again["MASTER_PORT"]) == ("mine", "13648")


@pytest.mark.parametrize("more", [{"RANK": "0"}, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_JOB_NAME": "bash"}])
def test_nothing_is_said_where_another_launcher_or_a_shell_runs(more):
    env = {**STEP, "SLURM_STEP_NODELIST": "n1", **more}
    set_rendezvous(env)
    assert "MASTER_ADDR" not in env


def test_torchruns_local_size_beats_deepspeeds():
    both = {"LOCAL_WORLD_SIZE": "2", "LOCAL_SIZE": "4", "LOCAL_RANK": "1"}
    assert read(RANK="3", WORLD_SIZE="4", **both, **RENDEZVOUS).local_world_size == 2


def test_the_local_rank_is_not_guessed_on_several_machines():
    assert refusal(RANK="3", WORLD_SIZE="4", LOCAL_SIZE="2", **RENDEZVOUS) == (
        "LOCAL_RANK is not set although LOCAL_SIZE=2 of WORLD_SIZE=4"
    )
    assert read(RANK="3", WORLD_SIZE="4", LOCAL_SIZE="4", **RENDEZVOUS) == RankEnvironment(3, 4, 3, 4)


def test_the_variables_of_the_step_beat_those_of_the_job():
    step = {
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_TASKS_PER_NODE": "3(x2)",
    }
    assert read(**SRUN, **step, SLURM_NODEID="1") == RankEnvironment(0, 4, 0, 2)


def test_without_the_steps_spread_the_jobs_counts():
    assert read(**SRUN, SLURM_TASKS_PER_NODE="2(x3)").local_world_size == 2
    assert read(**SRUN).local_world_size == 6


def test_a_rendezvous_marks_a_rank_of_an_srun_that_hides_its_step():
    hidden = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}
    assert read(**hidden) == RankEnvironment(0, 6, 0, 6)


@pytest.mark.parametrize("spread", ["4(x", "many", ",", "(x2)"])
def test_a_spread_that_cannot_be_read_is_quoted(spread):
    assert repr(spread) in refusal(**SRUN, SLURM_TASKS_PER_NODE=spread)


def test_a_local_rank_beyond_its_nodes_tasks_is_refused():
    env = {**SRUN, "SLURM_LOCALID": "2", "SLURM_NODEID": "1", "SLURM_TASKS_PER_NODE": "4,2"}
    assert refusal(**env) == "LOCAL_RANK=2 contradicts LOCAL_WORLD_SIZE=2"


@pytest.mark.parametrize("text", ["-1", "1.0", "", "0x1"])
def test_a_rank_that_is_no_number_is_quoted(text):
    assert refusal(RANK=text, WORLD_SIZE="2", **RENDEZVOUS).startswith(f"RANK is {text!r}, not a number")


@pytest.fixture
def eight_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr(machine, "_CGROUP_CPU", tmp_path / "cpu.max")
    return tmp_path / "cpu.max"


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("1600000 100000", 8),
    ],
)
def test_a_quota_cuts_the_cores(eight_cores, quota, cores):
    eight_cores.write_text(quota + "\n")
    assert available_cores() == cores


@pytest.mark.parametrize("content", [None, "", "max"])
def test_without_a_readable_quota_the_affinity_counts(eight_cores, content):
    if content is not None:
        eight_cores.write_text(content)
    assert available_cores() == 8


@pytest.mark.parametrize("shell", [{"SLURM_PTY_PORT": "35423"}, {"SLURM_JOB_NAME": "interactive"}])
def test_a_shell_on_a_node_is_no_rank(shell):
    """`srun --pty bash` is a step with one task, and so says everything that a rank has."""
    alone = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"}
    assert read(**alone) is not None
    assert read(**alone, **shell) is None
    assert read(**{**SRUN, "SLURM_STEP_NUM_TASKS": "6"}, **shell) is not None, "one of several is a rank"


@pytest.mark.parametrize(
    ("binding", "cores"),
    [
        ("quiet,mask_cpu:0x00ff,0xff00", 16),
        ("quiet,mask_cpu:0x3", 3),  # all ranks on the same cores: what this process may use counts
        ("map_cpu:0,1,2,3,4", 5),
        ("quiet,none", 3),
        ("", 3),
    ],
)
def test_cores_of_ranks_that_are_bound_to_their_own(monkeypatch, binding, cores):
    monkeypatch.setattr(machine, "available_cores", lambda: 3)
    assert machine.cores_of_ranks({"SLURM_STEP_ID": "0", "SLURM_CPU_BIND": binding}) == cores
    assert machine.cores_of_ranks({"SLURM_CPU_BIND": binding}) == 3, "outside of a step nothing is bound"
