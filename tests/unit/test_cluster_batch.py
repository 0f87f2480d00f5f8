"""The decisions of a job script: small programs stand where SLURM's commands and the ranks would."""

import json
import os
import signal
import time

import pytest
from job_script import Job

from distllm.cluster.control import Control
from distllm.cluster.health import MARK
from distllm.cluster.history import History
from distllm.cluster.jobs import job_of
from distllm.cluster.state import state_of

pytestmark = pytest.mark.slow


@pytest.fixture
def job(tmp_path, monkeypatch):
    return Job(tmp_path, monkeypatch)


def test_a_run_that_is_done_ends_the_job_and_is_not_started_again(job):
    job.plan({"event": ["done", {"step": 8}], "saves": [8]})
    code, told = job.run()
    assert (code, job.requeued) == (0, []), told
    assert "done: step 8" in told
    assert job_of(job.run_dir) == "12"
    code, told = job.run()
    assert code == 0
    assert "the run is done" in told
    assert len(job.programs.calls("srun")) == 1


def test_what_ranks_are_told(job):
    job.plan({"event": ["done", {"step": 8}]})
    job.run(SLURM_RESTART_COUNT="3")
    env = json.loads((job.run_dir / "ran-0").read_text())
    assert env["MASTER_ADDR"] == "localhost", "only because cluster.head says so"
    assert env["DISTLLM_FENCE"] == f"{job.submission.path}@1"
    assert env["DISTLLM_SETTLED"] == str(job.submission.config_file)
    (words,) = job.programs.calls("srun")
    assert {"--nodes=2", "--ntasks=2", "--kill-on-bad-exit=1", "--export=ALL"} <= set(words)
    assert words[-len(job.submission.words) :] == list(job.submission.words)


def test_a_failure_with_progress_is_started_again_and_without_it_given_up(job):
    job.plan({"saves": [4], "code": 1}, {"code": 137}, {"code": 137})
    for _ in range(2):  # it leaves at once, and SLURM can use the nodes
        code, told = job.run()
        assert (code, told.count("queued again")) == (75, 1)
    code, told = job.run()
    assert code == 70
    assert "2 starts in a row have ended without saving a further step" in told
    assert job.requeued == ["12", "12"]
    starts = History(job.run_dir).starts()
    assert [start.end for start in starts] == ["failed"] * 3
    assert starts[-1].given_up == "2 starts in a row have ended without saving a further step"
    assert state_of(job.run_dir, []).state == "given up"


@pytest.mark.parametrize("exit_code", [64, 65])
def test_what_would_fail_again_is_not_tried_again(job, exit_code):
    job.plan({"code": 143, "exits": {"0": 70, "1": exit_code}, "saves": [4]})
    code, told = job.run()
    assert (code, job.requeued) == (exit_code, [])
    assert f"hopeless: rank 1 ended with {exit_code}" in told


def test_a_stop_by_a_person_ends_the_run(job):
    job.plan({"event": ["stopped", {"step": 4, "why": "asked to stop: distllm stop"}], "code": 143})
    code, told = job.run()
    assert (code, job.requeued) == (75, [])
    assert "stopped: asked to stop: distllm stop, at step 4" in told


def test_the_warning_becomes_a_request_and_the_job_comes_back(job):
    job.plan({"wait": True, "code": 75})
    script = job.begin()
    try:
        while not list(job.run_dir.glob("ran-*")):
            time.sleep(0.05)
        script.send_signal(signal.SIGUSR2)
        told, _ = script.communicate(timeout=60)
    finally:
        script.kill()
        script.wait()
    assert "again: asked to stop: the time limit is near" in told
    assert job.requeued == ["12"]
    request = Control(job.run_dir).asked("stop")
    assert request.again
    job.plan({"event": ["done", {"step": 8}]})
    code, _ = job.run(SLURM_RESTART_COUNT="1")
    assert code == 0
    assert Control(job.run_dir).asked("stop") is None, "what was asked of an earlier start is forgotten"


def test_term_is_never_answered_with_a_requeue(job):
    """SLURM alone decides about a job that it ends: this one may have been cancelled."""
    job.plan({"wait": True, "code": 75})
    script = job.begin()
    try:
        while not list(job.run_dir.glob("ran-*")):
            time.sleep(0.05)
        script.terminate()
        Control(job.run_dir).ask("stop", "the time limit is near", again=True)
        told, _ = script.communicate(timeout=60)
    finally:
        script.kill()
        script.wait()
    assert script.returncode == 143
    assert job.requeued == []
    assert History(job.run_dir).starts()[0].end is None
    assert "ended by SLURM" in told


def test_term_during_the_health_check_brings_no_job_back(tmp_path, monkeypatch):
    """The check is ended as well, and no node has said that it is well: that is no failure of theirs."""
    job = Job(tmp_path, monkeypatch, "cluster.health.enabled=true")
    job.health.unlink()
    os.mkfifo(job.health)
    script = job.begin()
    try:
        with job.health.open("w"):  # waits until the check has begun
            script.terminate()
            time.sleep(0.2)
        told, _ = script.communicate(timeout=60)
    finally:
        script.kill()
        script.wait()
    assert (script.returncode, job.requeued) == (143, []), told
    assert job.programs.calls("sbatch") == []
    assert History(job.run_dir).starts()[0].end is None
    assert state_of(job.run_dir, []).state == "lost", "not new, though no rank has written down anything"


@pytest.mark.parametrize(("wish", "said"), [("cancel", "cancelled"), ("stop", "asked to stop: enough")])
def test_a_run_that_nobody_wants_is_not_started(job, wish, said):
    Control(job.run_dir).ask(wish, "enough")
    code, told = job.run()
    assert code == 0
    assert said in told
    assert job.programs.calls("srun") == []


def test_a_refused_requeue_chains_a_new_job(job):
    job.plan({"saves": [4], "code": 1})
    job.programs.put("scontrol", "echo 'Requested operation is presently disabled' >&2; exit 1")
    code, told = job.run()
    assert code == 75
    assert "job 77 takes over" in told
    (words,) = job.programs.calls("sbatch")
    assert words == ["--parsable", "--dependency=afterany:12", str(job.submission.script)]
    assert job_of(job.run_dir) == "77"


def test_a_controller_that_is_away_is_asked_again(job):
    """It is restarted just when a rank has failed: the run must not end with that."""
    job.plan({"saves": [4], "code": 1})
    job.programs.put("scontrol", "echo 'Unexpected message received for job 12' >&2; exit 1")
    away = "echo 'sbatch: error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    job.programs.put(
        "sbatch", f"[ -e {job.run_dir}/back ] && echo 77 && exit; touch {job.run_dir}/back; {away}"
    )
    code, told = job.run()
    assert code == 75
    assert told.count("asking again") == 1
    assert "job 77 takes over" in told


def test_a_requeue_that_was_ended_with_its_job_is_no_refusal(job):
    """SLURM ends the processes of the script as soon as it has heard: a second job would be one too many."""
    job.plan({"saves": [4], "code": 1})
    job.programs.put("scontrol", "kill -KILL $$")
    _, told = job.run()
    assert "asked SLURM to queue the job again" in told
    assert job.programs.calls("sbatch") == []


def test_the_command_that_requeues_is_not_ended_by_term(job):
    job.plan({"saves": [4], "code": 1})
    job.programs.put("scontrol", "kill -TERM $$; exit 0")
    _, told = job.run()
    assert told.endswith("queued again\n")
    assert job.programs.calls("sbatch") == []


def test_a_task_of_an_array_never_touches_the_others(job):
    array = {"SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "2"}
    job.plan({"saves": [4], "code": 1})
    job.run(**array)
    assert job.requeued == ["10_2"]
    job.programs.put("scontrol", "exit 1")
    job.plan({"saves": [8], "code": 1})
    job.run(**array)
    assert "--array=2" in job.programs.calls("sbatch")[0]
    assert job_of(job.run_dir) == "77_2"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cluster.slurm.requeue=false", "cluster.slurm.requeue=false: not started again"),
        ("cluster.slurm.max_restarts=0", "cluster.slurm.max_restarts=0: not started again"),
    ],
)
def test_bounds_on_restarts(tmp_path, monkeypatch, override, said):
    job = Job(tmp_path, monkeypatch, override)
    job.plan({"saves": [4], "code": 1})
    code, told = job.run()
    assert (code, job.requeued) == (70, [])
    assert said in told


def test_nodes_that_slurm_lost_are_excluded_and_a_job_that_gets_them_goes_elsewhere(job):
    History(job.run_dir).begin("12", ["n1", "n2"], str(job.submission.path))
    job.programs.put("sinfo", "echo 'n1|idle'; echo 'n2|down*'")
    job.plan({"event": ["done", {"step": 8}]})
    code, told = job.run()
    assert code == 75
    assert "n2 is down*: excluded" in told
    assert job.programs.calls("srun") == []
    assert "--exclude=n2" in job.programs.calls("sbatch")[0]
    assert History(job.run_dir).excluded() == {"n2": "down* after start 1"}
    code, _ = job.run(SLURM_JOB_NODELIST="n[1,3]")
    assert code == 0


def test_a_failed_look_at_lost_nodes_blames_nobody(job):
    History(job.run_dir).begin("12", ["n1", "n2"], str(job.submission.path))
    job.programs.put("sinfo", "exit 1")
    job.plan({"event": ["done", {"step": 8}]})
    code, told = job.run()
    assert code == 0
    assert "cannot find out which nodes were lost" in told


def node_line(node, *problems, shared=()):
    told = {"node": node, "problems": problems, "shared": shared, "together": [], "figures": {}}
    return MARK + json.dumps(told) + "\n"


def test_a_sick_node_is_left_out_and_a_new_job_takes_over(tmp_path, monkeypatch):
    job = Job(tmp_path, monkeypatch, "cluster.health.enabled=true", "cluster.slurm.exclude=[n9]")
    job.health.write_text(node_line("n1") + node_line("n2", "is on fire"))
    job.plan({"event": ["done", {"step": 8}]})
    code, told = job.run()
    assert code == 75
    assert "health of n2: is on fire" in told
    assert "--exclude=n2,n9" in job.programs.calls("sbatch")[0]
    assert [start.end for start in History(job.run_dir).starts()] == ["elsewhere"]


@pytest.mark.parametrize("disk", ["0 B free in the run directory", None])
def test_when_every_node_is_sick_it_is_not_the_nodes(tmp_path, monkeypatch, disk):
    """It is tried again, for somebody may free the disk, and no node is left out for good."""
    job = Job(tmp_path, monkeypatch, "cluster.health.enabled=true")
    full = [node_line(node, shared=[disk]) for node in ("n1", "n2")]
    job.health.write_text("".join(full) if disk else "")
    code, told = job.run()
    assert (code, job.requeued) == (75, ["12"])
    assert f"failed: {disk or 'every node of the job fails: n1: did not'}" in told
    code, told = job.run()
    assert code == 74
    assert "2 starts in a row have ended without saving a further step" in told
    assert History(job.run_dir).excluded() == {}
    assert job.programs.calls("sbatch") == []


def test_when_no_job_can_take_over_it_is_said(tmp_path, monkeypatch):
    job = Job(tmp_path, monkeypatch, "cluster.health.enabled=true")
    job.health.write_text(node_line("n1") + node_line("n2", "is on fire"))
    job.programs.put("sbatch", "echo 'Requested node configuration is not available' >&2; exit 1")
    code, told = job.run()
    assert code == 74
    assert "no job takes over: SLURM refused: Requested node configuration" in told


def test_a_head_that_does_not_resolve_is_a_failure_with_a_name(tmp_path, monkeypatch):
    job = Job(tmp_path, monkeypatch, "cluster.head=nowhere.invalid", "cluster.slurm.max_stalls=1")
    job.plan({"event": ["done", {"step": 8}]})
    code, told = job.run()
    assert code == 70
    assert "'nowhere.invalid' does not resolve" in told


def test_checkpoints_are_submitted_for_evaluation_once_and_in_a_row(tmp_path, monkeypatch):
    job = Job(tmp_path, monkeypatch, "cluster.slurm.evaluate_every_steps=4")
    job.plan({"event": ["done", {"step": 8}], "saves": [2, 4, 8]})
    assert job.run()[0] == 0
    first, second = job.programs.calls("sbatch")
    assert [words[0] for words in (first, second)] == ["--parsable"] * 2
    assert second[1] == "--dependency=afterany:77"
    assert first[-1].endswith("step-000000004.sbatch")
    script = (job.run_dir / "slurm/evaluations/step-000000008.sbatch").read_text()
    assert f"set -- run={job.run_dir} step=8" in script
    assert "exec" in script


def test_a_refused_evaluation_does_not_touch_the_training(tmp_path, monkeypatch):
    job = Job(tmp_path, monkeypatch, "cluster.slurm.evaluate_every_steps=4")
    job.programs.put("sbatch", "echo 'QOS limit' >&2; exit 1")
    job.plan({"event": ["done", {"step": 8}], "saves": [4, 8]})
    code, told = job.run()
    assert code == 0
    assert told.count("checkpoints are not evaluated") == 1


def test_a_disk_that_takes_no_script_of_an_evaluation_costs_no_training(tmp_path, monkeypatch):
    job = Job(tmp_path, monkeypatch, "cluster.slurm.evaluate_every_steps=4")
    (job.run_dir / "slurm").mkdir(parents=True, exist_ok=True)
    (job.run_dir / "slurm" / "evaluations").write_text("no directory")
    job.plan({"saves": [4], "event": ["done", {"step": 4}]})
    code, told = job.run()
    assert code == 0
    assert "checkpoints are not evaluated: cannot make the directory" in told
