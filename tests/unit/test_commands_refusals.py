"""What commands refuse in words of their own, caused without a cluster, a server or a trained run."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import run_directory

from distllm.cli import main
from distllm.cluster import after, limits, places
from distllm.cluster.slurm import Task
from distllm.commands import submit_checks
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.schema_cluster import ClusterConfig
from distllm.errors import ConfigError


@pytest.fixture
def runs(tmp_path):
    """A directory with a run that is done and has no logs of its ranks but an empty directory."""
    (run_directory.write_run(tmp_path / "runs", "storm") / "logs").mkdir()
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["logs", "run=storm", "rank=first"], "rank=first is not a rank"),
        (["logs", "run=storm", "rank=7"], "rank 7 has no log in"),
        (["logs", "run=storm", "start=3"], "start=3: the run was started 0 times"),
        (["stop", "run=storm"], "the run is neither running nor waiting: done"),
        (["requeue", "run=storm"], "no job of the run is running: none is in the queue"),
        (["evaluate", "run=storm", "model=folder", "step=1"], "step chooses a checkpoint of the run"),
    ],
)
def test_a_run_is_asked_for_what_it_has(runs, words, told, capsys):
    assert main([*words, f"runs_dir={runs}"]) == 64
    said = capsys.readouterr().err
    assert told in said
    assert "remedy:" in said


def test_a_layout_that_a_server_does_not_take_is_told(monkeypatch, capsys):
    def refuse():
        raise ConnectionError("no such host")

    monkeypatch.setattr("distllm.observe.workspace.workspace", lambda *_: SimpleNamespace(save=refuse))
    assert main(["dashboard", "project=mine", "entity=me"]) == 64
    assert "did not accept the layout (ConnectionError: no such host)" in capsys.readouterr().err


def found(check, *arguments):
    """The words of all problems that a check finds."""
    problems = Problems()
    check(*arguments, problems)
    with pytest.raises(ConfigError) as error:
        problems.raise_if_any()
    return str(error.value)


def test_what_no_node_of_a_job_would_see_find_room_for_or_should_show_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "filesystem_of", lambda place: "tmpfs" if place == tmp_path else "ext4")
    assert "the memory of this machine" in found(places.check_shared, Config(), tmp_path)
    huge = SimpleNamespace(trainable_params=10**15, config=Config())
    assert "two checkpoints of this run take" in found(places.check_room, huge, tmp_path)
    secret = replace(Config(), cluster=replace(ClusterConfig(), env={"API_KEY": "a-key-of-mine"}))
    told = found(places.check_secrets, secret)
    assert "looks like a secret" in told
    assert "a-key-of-mine" not in told


def test_what_slurm_would_not_take_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "max_array_size", lambda: 10)
    assert "an array of 11 tasks is too large: this cluster allows 10" in found(
        limits.check_array, 11, "sweep"
    )
    for tasks, told in (
        ([], "SLURM knows no job 7"),
        ([Task("7", "train", "FAILED")], "job 7 has ended without success: FAILED"),
    ):
        monkeypatch.setattr(after, "tasks_of", lambda _job, tasks=tasks: tasks)
        assert told in found(after.check_after, "7")
    queued = [SimpleNamespace(job="7", state="PENDING")]
    monkeypatch.setattr("distllm.cluster.jobs.jobs_of", lambda _path: ["7"])
    monkeypatch.setattr(submit_checks, "queued_jobs", lambda _jobs: queued)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert "job 7 of this run directory is already pending" in found(
        submit_checks._check_not_queued, tmp_path
    )


def test_fewer_machines_than_divide_a_step_and_a_resume_from_nothing_are_refused(tmp_path):
    cluster = replace(ClusterConfig(), nodes=4, procs_per_node=1)
    config = replace(Config(), cluster=cluster)
    tokens = 4 * config.data.seq_len
    config = replace(config, train=replace(config.train, tokens_per_step=tokens))
    told = found(submit_checks._check_fewer, config, 2)
    assert f"a step of {tokens} tokens is not a whole number of sequences on 3 machines of 1 ranks" in told
    must = replace(config, checkpoint=replace(config.checkpoint, resume="must"))
    resolved = SimpleNamespace(config=must)
    assert "to resume from" in found(submit_checks._check_resume, resolved, tmp_path)
