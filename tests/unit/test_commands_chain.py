"""Chains of jobs, sweeps as one job, and what follows a run: logs and requeue; programs stand for SLURM."""

import os
import threading
import time
from pathlib import Path

import pytest
from login_node import login_node, refused, words

from distllm.cli import main
from distllm.cluster import places
from distllm.cluster.control import Control
from distllm.cluster.history import History
from distllm.cluster.jobs import jobs_of
from distllm.cluster.snapshot import Submission, submissions_of
from distllm.observe.ledger import Ledger

pytestmark = pytest.mark.slow
RUN = Path("runs/mine")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return login_node(tmp_path, monkeypatch)


def submitted(slurm):
    return [call for call in slurm.calls("sbatch") if call[0] == "--parsable"]


def test_a_chain_as_an_array_of_which_one_task_runs(slurm, capsys):
    assert main(["submit", "chain=3", "by=array", "after=7", *words()]) == 0
    (call,) = submitted(slurm)
    assert call[1] == "--dependency=afterok:7"
    script = Submission.load(submissions_of(RUN.absolute())[0]).script.read_text()
    assert "#SBATCH --array=0-2%1" in script
    assert "job-%A-%a.log" in script
    assert jobs_of(RUN) == ["41_0", "41_1", "41_2"]
    assert "array of 3" in capsys.readouterr().out


def test_a_chain_of_one_name(slurm):
    assert main(["submit", "chain=2", "by=singleton", "after=7", *words()]) == 0
    assert [call[1] for call in submitted(slurm)] == ["--dependency=afterok:7,singleton"] * 2
    assert jobs_of(RUN) == ["41", "41"]


def test_what_slurm_says_is_a_note_and_its_refusal_one_problem_among_others(slurm, capsys):
    assert main(["submit", "dry_run=true", *words()]) == 0
    assert "mine: Job 1 to start soon" in capsys.readouterr().out
    slurm.put("sbatch", "echo 'allocation failure: Invalid account' >&2; exit 1")
    slurm.put(
        "sinfo", "case $* in *-N*) echo 'n7|drained';; *) echo 'normal*|up|1-0|4|64|500000|gpu:8';; esac"
    )
    told = refused(capsys, "submit", *words("cluster.head=nowhere.invalid", "cluster.slurm.nodelist=[n7]"))
    assert "Invalid account" in told
    assert "node n7 is drained" in told
    assert "'nowhere.invalid' does not resolve" in told
    assert not (RUN / "slurm").exists()


def test_options_of_sbatch_that_would_undo_the_job_are_refused(slurm, capsys):
    options = "cluster.slurm.options=['--array=0-3','-N3','hetjob','--nice=100']"
    told = refused(capsys, "submit", *words(options, "cluster.slurm.nice=100"))
    for part in (
        "--array is set by distllm submit",
        "-N is set by distllm submit",
        "'hetjob' is not an option",
    ):
        assert part in told
    assert "cluster.slurm.options=['--nice=...']" in told, "a key of sbatch's own"
    assert not submitted(slurm)


def test_problems_of_all_runs_of_a_sweep_are_told_at_once(slurm, capsys):
    told = refused(
        capsys, "submit", "-m", *words("train.tokens_per_step=500,700", "cluster.head=nowhere.invalid")
    )
    assert "tokens_per_step 500" in told
    assert "tokens_per_step 700" in told
    assert told.count("does not resolve") == 1
    told = refused(capsys, "submit", "-m", *words("cluster.slurm.time_limit=60,90"))
    assert "share one job script" in told
    told = refused(capsys, "submit", "-m", "by=array", "chain=2", *words("seed=1,2,3,4,5"))
    assert "arrays cannot be nested" in told
    assert "an array of 5 tasks is too large: this cluster allows 4" in told
    assert not submitted(slurm)


def test_secrets_and_places_are_part_of_the_check(slurm, capsys, monkeypatch):
    monkeypatch.setattr(places, "filesystem_of", lambda _: "tmpfs")
    told = refused(capsys, "submit", *words("cluster.env.WANDB_API_KEY=0123456789abcdef"))
    assert "looks like a secret" in told
    assert "the memory of this machine" in told
    assert not submitted(slurm)


def test_stop_leaves_no_job_of_the_chain_behind(slurm, capsys):
    assert main(["submit", "chain=3", "by=array", *words()]) == 0
    slurm.put(
        "squeue",
        "echo '41_0|RUNNING|None|n1|1:00|x'; echo '41_1|PENDING|x||1:00|x'; echo '41_2|PENDING|x||1:0|x'",
    )
    assert main(["stop", "run=mine"]) == 0
    assert slurm.calls("scancel") == [["41_1", "41_2"]]
    assert "saves at its next step" in capsys.readouterr().out
    assert main(["cancel", "run=mine"]) == 0
    assert slurm.calls("scancel")[1] == ["41_0", "41_1", "41_2"]


def test_requeue_asks_the_ranks_and_names_unwanted_nodes(slurm, capsys):
    assert main(["submit", *words()]) == 0
    assert "no job of the run is running: none is in the queue" in refused(capsys, "requeue", "run=mine")
    slurm.put("squeue", "echo '41|RUNNING|None|n[1-2]|1:00|x'")
    assert main(["requeue", "run=mine", "exclude=n[1-2]"]) == 0
    request = Control(RUN).asked("stop")
    assert request.again
    assert request.why.startswith("to queue again: distllm requeue, by ")
    assert set(History(RUN).excluded()) == {"n1", "n2"}
    assert main(["requeue", "run=mine", "now=true"]) == 0
    assert ["requeue", "41"] in slurm.calls("scontrol")
    assert main(["submit", *words("name=fixed", "cluster.slurm.requeue=false")]) == 0
    assert "cluster.slurm.requeue=false" in refused(capsys, "requeue", "run=fixed")


def log(start, rank, text):
    path = RUN / f"slurm/starts/{start:03d}/rank-{rank}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.write(text)


def test_logs_of_ranks(slurm, capsys):
    assert main(["submit", *words()]) == 0
    assert "no rank has started" in refused(capsys, "logs", "run=mine")
    History(RUN).begin("41", ["n1", "n2"], "s")
    log(1, 0, "".join(f"line {number}\n" for number in range(50)) + "half a li")
    log(1, 1, "other\n")
    capsys.readouterr()
    assert main(["logs", "run=mine", "lines=2"]) == 0
    assert capsys.readouterr().out == "line 48\nline 49\n"
    assert main(["logs", "run=mine", "lines=1", "rank=all"]) == 0
    assert capsys.readouterr().out == "rank 0 | line 49\nrank 1 | other\n"
    assert "rank 7 has no log" in refused(capsys, "logs", "run=mine", "rank=7")
    assert "rank=x is not a rank" in refused(capsys, "logs", "run=mine", "rank=x")
    assert "start=2: the run was started 1 times" in refused(capsys, "logs", "run=mine", "start=2")


def test_the_last_lines_of_a_long_log_are_shown_without_reading_all_of_it(tmp_path, capsys):
    from distllm.commands import logs

    path = tmp_path / "rank-0.log"
    with path.open("wb") as stream:
        stream.truncate(1 << 36)
        stream.seek(0, os.SEEK_END)
        stream.write(b"\none\ntwo\nhalf a li")
    reader = logs.Reader(tmp_path, "0", 2)
    assert reader.print_new()
    assert capsys.readouterr().out == "one\ntwo\n"
    with path.open("ab") as stream:
        stream.write(b"ne\n")
    reader.print_new()
    assert capsys.readouterr().out == "half a line\n"


def test_logs_follow_a_run_from_start_to_start_until_it_has_ended(slurm, capsys, monkeypatch):
    from distllm.commands import logs

    monkeypatch.setattr(logs, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(logs, "_ASK_SECONDS", 0.1)
    assert main(["submit", *words()]) == 0
    slurm.put("squeue", "echo '41|RUNNING|None|n1|1:00|x'")
    History(RUN).begin("41", ["n1"], "s")
    log(1, 0, "first\n")

    def go_on():
        time.sleep(0.2)
        log(1, 0, "second\n")
        History(RUN).begin("41", ["n2"], "s")
        log(2, 0, "third\n")
        time.sleep(0.2)
        Ledger(RUN / "ledger.jsonl", 1).event("done", step=8)
        slurm.put("squeue")

    capsys.readouterr()
    writer = threading.Thread(target=go_on)
    writer.start()
    assert main(["logs", "-f", "run=mine"]) == 0
    writer.join()
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if not line.startswith("==")] == ["first", "second", "third"]
    assert told[-1] == "== the run has ended: done"
