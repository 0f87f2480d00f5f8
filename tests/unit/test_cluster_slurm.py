"""What is asked of SLURM and what it answers, with small programs in the place of its commands."""

import os
import subprocess
from dataclasses import replace

import pytest

from distllm.cluster import slurm
from distllm.cluster.allocation import Allocation
from distllm.cluster.limits import (
    check_container,
    check_interval,
    check_limits,
    check_warning,
    gpus_per_node,
    time_limit,
)
from distllm.cluster.render import Array, render, settings_lines, template, train_options
from distllm.cluster.slurm import NodeGroup, node_groups, parse_time, queued_jobs, submit, unusable
from distllm.cluster.snapshot import keep_submission, require_same, submissions_of
from distllm.cluster.srun import health_command, ranks_command
from distllm.config.compose import compose
from distllm.config.problems import Problems
from distllm.errors import ConfigError, LaunchError

NORMAL = NodeGroup("normal", True, True, 86400, 16, 96, 500_000, 8)
SMALL = NodeGroup("small", False, True, 3600, 2, 8, 16_000, 0)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Put a program on the PATH: its name and what it does, in shell."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(name, body):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    return put


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("5:30", 330),
        ("1:30:00", 5400),
        ("2-12", 216000),
        ("2-12:30", 217800),
        ("1-0:0:1", 86401),
    ],
)
def test_times(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "-5", "1 h"])
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match="not a time"):
        parse_time(text)


def test_no_limit():
    assert parse_time("UNLIMITED") is None
    assert parse_time("infinite") is None


def test_node_groups(programs):
    rows = ("normal*|up|1-00:00:00|16|96+|500000|gpu:h100:8(S:0-1)", "cpu|drain|infinite|2|8|9|(null)")
    programs("sinfo", "\n".join(f"echo '{row}'" for row in rows))
    assert node_groups() == [NORMAL, NodeGroup("cpu", False, False, None, 2, 8, 9, 0)]


def test_unusable_nodes(programs):
    programs("sinfo", "printf 'n1|idle\\nn2|down*\\nn3|drained\\nn4|mixed*\\nn5|allocated\\nn6|draining\\n'")
    assert set(unusable(["n1"])) == {"n2", "n3", "n4", "n6"}
    assert unusable([]) == {}


def test_the_queue(programs):
    programs("squeue", "echo '7_1|RUNNING|None|n1|1:00|x'; echo '9|PENDING|Resources||2:00|y|z'")
    assert [(job.job, job.name) for job in queued_jobs()] == [("7_1", "x"), ("9", "y|z")]
    assert [job.state for job in queued_jobs(["7"])] == ["RUNNING"]


def test_a_refusal_and_a_missing_command_are_told(programs, monkeypatch):
    programs("sbatch", "echo 'error: Invalid account' >&2; exit 1")
    with pytest.raises(LaunchError, match="SLURM refused: error: Invalid account"):
        submit("job.sbatch")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaunchError, match="sinfo is not installed"):
        node_groups()


def test_a_command_that_hangs_is_told(programs, monkeypatch):
    programs("sinfo", "sleep 20")
    monkeypatch.setattr(slurm, "_TOOL_SECONDS", 0.2)
    with pytest.raises(LaunchError, match="did not answer"):
        node_groups()


def limits_of(*overrides, groups=(NORMAL, SMALL)):
    problems = Problems()
    check_limits(compose(list(overrides)), groups, problems)
    return [problem.cause for problem in problems.found]


def test_limits_that_hold():
    assert limits_of("cluster.nodes=16") == []
    assert limits_of("cluster.slurm.partition=small", "cluster.slurm.time_limit=59") == []


@pytest.mark.parametrize(
    ("overrides", "cause"),
    [
        (["cluster.slurm.partition=smal"], "there is no partition 'smal'"),
        (["cluster.nodes=17"], "17 nodes requested from partition normal, which has 16"),
        (
            ["cluster.nodes=17", "cluster.slurm.partition=x"],
            "cluster.nodes=17, but the largest partition has 16 nodes",
        ),
        (["cluster=gpu8", "cluster.procs_per_node=9"], "9 GPUs per node requested"),
        (["cluster.slurm.cpus_per_rank=97"], "97 CPU cores per node requested"),
        (
            ["cluster.slurm.cpus_per_rank=97", "cluster.slurm.partition=x"],
            "of this cluster have 96",
        ),
        (["cluster.slurm.memory=4T"], "4.0 TiB of memory per node requested"),
        (["cluster.slurm.memory=lots"], "'lots' is not an amount of memory"),
        (["cluster.slurm.partition=small"], "allows at most 1h00m00s"),
        (["cluster.slurm.time_limit=never"], "'never' is not a time"),
        (["cluster.slurm.time_limit=6"], "leaves no time before the warning"),
    ],
)
def test_limits_that_do_not_hold(overrides, cause):
    assert any(cause in found for found in limits_of(*overrides)), limits_of(*overrides)


def test_a_cluster_without_default_partition():
    assert limits_of(groups=[SMALL]) == ["there is no default partition"]
    assert "partition small is down" in limits_of(
        "cluster.slurm.partition=small", "cluster.slurm.time_limit=30", groups=[replace(SMALL, is_up=False)]
    )


def test_gpus_follow_from_ranks_unless_they_are_named():
    assert gpus_per_node(compose(["cluster=gpu8"])) == 8
    assert gpus_per_node(compose(["cluster.procs_per_node=2"])) == 0
    assert gpus_per_node(compose(["cluster.slurm.gpus=h100:4"])) == 4


def test_a_start_must_reach_a_checkpoint():
    config = compose(["cluster.slurm.time_limit=26", "checkpoint.every_steps=100"])
    problems = Problems()
    check_interval(config, 12.0, "measured", problems)
    assert not problems.found
    check_interval(config, 12.1, "measured", problems)
    (problem,) = problems.found
    assert "checkpoint.every_steps=99" in problem.remedy
    check_interval(config, 5000.0, "measured", problems)
    assert problems.found[-1].remedy == "a longer limit: otherwise a failure loses a whole start"
    assert time_limit(config, problems) == 26 * 60


def test_a_warning_must_leave_time_for_a_step_and_a_checkpoint():
    config, problems = compose(["cluster.slurm.warning_seconds=120"]), Problems()
    check_warning(config, 20.0, 40.0, "measured", problems)
    assert not problems.found
    check_warning(config, 20.0, 41.0, "measured", problems)
    (problem,) = problems.found
    assert "warns 120 s before" in problem.cause
    assert (
        "take 1m01s (20 s a step, measured), and the ranks may notice the warning 60 s late" in problem.cause
    )
    assert problem.remedy == "cluster.slurm.warning_seconds=152"


@pytest.mark.parametrize(
    ("image", "fine"), [(None, False), ("/no/such.sif", False), ("nvcr.io#nvidia/pytorch:26.01", True)]
)
def test_the_image(image, fine):
    config = compose(
        ["cluster.container.kind=pyxis", f"cluster.container.image='{image}'" if image else "seed=0"]
    )
    problems = Problems()
    check_container(config, problems)
    assert (not problems.found) is fine


@pytest.mark.parametrize("name", ["train", "prepare", "evaluate"])
def test_templates_are_scripts_that_run_by_hand(name):
    text = template(name)
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    assert text.count("# settings: ") == 1
    assert '"$@"' in text


def test_a_script_is_filled_in_and_quoted(tmp_path):
    words = ["cluster.setup=[\"echo 'it works'\"]", "cluster.env.NOTE='two words'", "cluster.nodes=2"]
    words += ["cluster.slurm.account=ml", "cluster.slurm.exclude=[n1,n2]"]
    config = compose(words)
    options = train_options(config, tmp_path / "job.log", Array(3))
    assert {"--account=ml", "--exclude=n1,n2", "--nodes=2", "--array=0-2", "--requeue"} <= set(options)
    lines = settings_lines(config, code=tmp_path / "a code", python="/py", directory=tmp_path)
    script = render("train", ["--nodes=2"], lines, ["a b", "$HOME"], "distllm submit\nname=x")
    shown = script.replace("exec ", "echo ").replace('"$@"', '"$1|$2|$NOTE|$PYTHONPATH"')
    env = {"PATH": os.environ["PATH"]}
    ran = subprocess.run(["bash"], input=shown, text=True, capture_output=True, check=False, env=env)
    told = f"/py -m distllm.cli job a b|$HOME|two words|{tmp_path}/a code"
    assert ran.stdout.splitlines() == ["it works", told]
    head = ["#!/usr/bin/env bash", "# Made from slurm/train.sbatch by: distllm submit name=x"]
    first, second, _, third = script.splitlines()[:4]
    assert [first, second, third] == [*head, "#SBATCH --nodes=2"]


def test_ranks_start_inside_the_container_and_the_data_is_mounted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose(["cluster=gpu8", "cluster.nodes=2", "cluster.container.kind=apptainer",
                      "cluster.container.image=x.sif", "cluster.slurm.cpus_per_rank=4"])  # fmt: skip
    kept = keep_submission(tmp_path / "runs/a", ["seed=1"], "seed: 1\n", None, code=tmp_path / "code")
    words = ranks_command(kept, config, tmp_path / "logs")
    assert words[0] == "srun"
    assert {"--ntasks=16", "--ntasks-per-node=8", "--cpus-per-task=4", "--kill-on-bad-exit=1"} <= set(words)
    assert words[words.index("apptainer") :][:3] == ["apptainer", "exec", "--nv"]
    assert f"{tmp_path}/data/pydocs:{tmp_path}/data/pydocs" in words
    assert words[-4:] == ["python3", "-m", "distllm.launch.train", "seed=1"]
    pyxis = replace(
        config, cluster=replace(config.cluster, container=replace(config.cluster.container, kind="pyxis"))
    )
    assert "--container-image=x.sif" in ranks_command(kept, pyxis, tmp_path)
    assert "--ntasks=2" in health_command(kept, config, "n1", 5)


def test_submissions_are_numbered_and_hold_a_copy_of_the_code(tmp_path):
    first = keep_submission(tmp_path / "run", ["a=1"], "text\n", None)
    second = keep_submission(tmp_path / "run", ["a=2"], "text\n", None, code=first.code)
    assert [path.name for path in submissions_of(tmp_path / "run")] == ["001", "002"]
    assert first.run_dir == second.run_dir == (tmp_path / "run").absolute()
    assert (first.code / "distllm" / "conf" / "config.yaml").is_file(), "links have become files"
    assert (first.code / "distllm" / "slurm" / "train.sbatch").is_file()
    assert not list(first.code.rglob("__pycache__"))
    require_same("text\n", first.config_file)
    with pytest.raises(ConfigError, match=r"not the one that was submitted.*seed: 2"):
        require_same("seed: 2\n", first.config_file)


def test_an_allocation_names_the_task_of_an_array():
    env = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[2-3]", "SLURM_RESTART_COUNT": "1"}
    assert Allocation.read(env) == Allocation("12", None, 1, ("n2", "n3"))
    array = env | {"SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "2"}
    assert Allocation.read(array).job == "10_2"
    with pytest.raises(LaunchError, match="not a SLURM job"):
        Allocation.read({})


def test_every_start_meets_at_another_port_and_never_at_localhost(programs):
    allocation = Allocation("12", None, 0, ("no-such-host.invalid",))
    assert allocation.port(1) != allocation.port(2)
    assert 10_000 <= allocation.port(1) < 30_000
    programs("scontrol", "exit 1")
    with pytest.raises(LaunchError, match="does not resolve"):
        allocation.head(None)
    programs("scontrol", "echo NodeName=x NodeAddr=127.0.0.9 Port=1")
    assert allocation.head(None) == "127.0.0.9"
    assert allocation.head("localhost") == "localhost"
