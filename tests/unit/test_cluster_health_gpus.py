"""What a node's check makes of NVIDIA's tools, of ranks left behind, and of nodes that do not see the run."""

import json
import subprocess

import pytest
from programs import Programs

from distllm.cluster.health import MARK, NodeCheck
from distllm.cluster.health_report import bad_nodes, read_reports
from distllm.cluster.srun import visible_command
from distllm.cluster.strays import end_strays
from distllm.config.compose import compose

GPU = ["cluster.device=cuda", "cluster.procs_per_node=2", "cluster.health.min_memory_bandwidth=0",
       "cluster.health.min_free_bytes=1"]  # fmt: skip


@pytest.fixture
def tools(tmp_path, monkeypatch):
    programs = Programs(tmp_path / "bin", monkeypatch)
    programs.put("nvidia-smi", "echo '0, 0, Not Active'; echo '1, 0, Not Active'")
    programs.put("dcgmi")
    return programs


def problems(tmp_path):
    check = NodeCheck(compose(GPU), tmp_path)
    check.local()
    return check.problems


def test_gpus_that_are_well(tools, tmp_path):
    assert problems(tmp_path) == []
    assert tools.calls("dcgmi") == [["diag", "-r", "1"]]


def test_gpus_that_are_not(tools, tmp_path):
    tools.put("nvidia-smi", "echo '0, 3, Active'")
    tools.put("dcgmi", "echo '| Memory | Fail - GPU 0 |'; exit 226")
    told = " / ".join(problems(tmp_path))
    for part in ("shows 1 GPUs of 2", "GPU 0 has 3 uncorrected", "GPU 0 is slowed down", "dcgmi diag -r 1:"):
        assert part in told
    assert "Fail - GPU 0" in told


def sleeper(fence):
    return subprocess.Popen(["sleep", "60"], env={"DISTLLM_FENCE": fence})


def test_ranks_of_an_earlier_start_are_ended_and_nobody_else(tmp_path, capsys):
    run, other = tmp_path / "run", tmp_path / "run2"
    stray, neighbour = (sleeper(f"{one}/slurm/submissions/001@1") for one in (run, other))
    try:
        NodeCheck(compose(GPU[2:]), run).local()
        assert stray.wait(10) == -9
        assert f"ended ranks of an earlier start: {stray.pid}" in capsys.readouterr().out
        assert neighbour.poll() is None
        assert end_strays(run) == []
    finally:
        for process in (stray, neighbour):
            process.kill()
            process.wait()


def test_a_node_that_does_not_see_the_run_directory_is_told_from_a_silent_one(tmp_path):
    good = {"node": "n1", "problems": [], "shared": [], "together": [], "figures": {}}
    reports = read_reports(f"{MARK}{json.dumps(good)}", ["n1", "n2", "n3"], blind=["n2"], directory=tmp_path)
    bad = bad_nodes(reports)
    assert bad["n2"] == f"does not see {tmp_path}, which must lie on a file system that all nodes share"
    assert bad["n3"] == "did not finish the health check"


def test_a_node_says_whether_it_sees_a_file(tmp_path):
    words = visible_command(compose(["cluster.nodes=2"]), tmp_path / "mark")
    shell = words[words.index("bash") :]
    env = {"SLURMD_NODENAME": "n7", "PATH": "/usr/bin:/bin"}
    said = [subprocess.run(shell, env=env, capture_output=True, text=True, check=True).stdout]
    (tmp_path / "mark").touch()
    said.append(subprocess.run(shell, env=env, capture_output=True, text=True, check=True).stdout)
    assert said == ["", "n7\n"]
