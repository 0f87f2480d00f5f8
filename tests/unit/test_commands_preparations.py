"""A preparation in the queue: what the commands for runs say of it, and a run that waits for it."""

from pathlib import Path

import pytest
from login_node import login_node, refused, words

from distllm.cli import main
from distllm.cluster.control import Control
from distllm.cluster.jobs import jobs_of
from distllm.cluster.snapshot import submissions_of

pytestmark = pytest.mark.slow
HOME = Path("runs/mine.prepare")
CORPUS = ("data=text", "data.paths=[corpus]", "data.out=new", "tokenizer.vocab_size=320")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    programs = login_node(tmp_path, monkeypatch)
    Path("corpus").mkdir()
    Path("corpus/a.txt").write_text("a text")
    return programs


def tasks(slurm, *states):
    """Let SLURM have an array 41 of a preparation, with tasks in these states."""
    lines = [f"JobId=4{n} ArrayJobId=41 ArrayTaskId={n} JobName=distllm-prepare-mine JobState={state}"
             for n, state in enumerate(states)]  # fmt: skip
    slurm.put("scontrol", "".join(f"echo '{line}'; " for line in lines))


def submitted(slurm):
    return [call for call in slurm.calls("sbatch") if call[0] == "--parsable"]


def test_its_tasks_are_known_and_ended(slurm, capsys):
    assert main(["submit", "prepare", "chain=2", *words(*CORPUS)]) == 0
    assert submitted(slurm)[1][1] == "--dependency=afterany:41"
    assert jobs_of(HOME) == ["41_0", "41_1"] * 2
    slurm.put("squeue", "echo '41_0|RUNNING|None|n1|1:00|x'; echo '41_1|PENDING|Resources||1:00|x'")
    place = submissions_of(HOME.absolute())[-1]
    shown = "  read        9 B of 9 B (100%)\n  clean       5 B of 9 B (59%)  1.0 KiB/s, ETA 1s  0/1 parts\n"
    (place / "job-41-0.log").write_text(shown)
    (place / "job-41-1.log").write_text("distllm: corpus is no UTF-8\n")
    capsys.readouterr()
    assert main(["jobs"]) == 0
    assert "mine.prepare  41   running  clean 59%" in (told := capsys.readouterr().out)
    assert "n1 (1 of 2 tasks)" in told
    assert main(["status", "run=mine.prepare"]) == 0
    assert "job 41: 1 of 2 tasks run on n1" in capsys.readouterr().out
    assert main(["logs", "run=mine.prepare", "rank=0", "lines=1"]) == 0
    assert capsys.readouterr().out.startswith("  clean ")
    assert main(["why", "run=mine.prepare"]) == 0
    assert "first error, on task 1" in capsys.readouterr().out
    assert "distllm stop works on training runs" in refused(capsys, "stop", "run=mine.prepare")
    assert "distllm requeue works on training runs" in refused(capsys, "requeue", "run=mine.prepare")
    assert main(["cancel", "run=mine.prepare"]) == 0
    assert slurm.calls("scancel") == [["41_0", "41_1"] * 2]
    slurm.put("squeue", "")
    assert main(["status", "run=mine.prepare"]) == 0
    assert ": cancelled" in capsys.readouterr().out
    Control(HOME).forget_all()
    ended = "slurmstepd-n1: error: *** JOB 42 ON n1 CANCELLED AT 2026-11-30T12:17:12 ***\n"
    (place / "job-41-1.log").write_text(ended)
    assert main(["why", "run=mine.prepare"]) == 0
    told = capsys.readouterr().out
    assert ": failed" in told
    assert "task 1: cancelled by scancel" in told
    slurm.put("squeue", "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1")
    Path("new").mkdir()
    Path("new/manifest.json").touch()
    assert main(["jobs"]) == 0
    said = capsys.readouterr()
    assert "mine.prepare  41   done" in said.out
    assert "SLURM's controller does not answer" in said.err


def test_a_run_may_wait_for_its_dataset(slurm, capsys):
    line = words("data.out=new", "name=later")
    assert "holds no prepared dataset" in refused(capsys, "submit", *line)
    assert not Path("runs/later").exists(), "what was refused leaves nothing behind"
    tasks(slurm, "CANCELLED", "RUNNING")
    assert main(["submit", "after=41", *line]) == 0
    assert "new does not exist yet; it is checked when job 41 has made it" in capsys.readouterr().out
    assert submitted(slurm)[-1][1] == "--dependency=afterok:41_0?afterok:41_1"
    tasks(slurm, "CANCELLED", "FAILED")
    assert "job 41 has ended without success: CANCELLED" in refused(capsys, "submit", "after=41", *line)


def test_what_a_preparation_has_no_use_for_is_refused(slurm, capsys):
    for more in (["-m"], ["by=array", "chain=2"]):
        assert "a preparation is already an array" in refused(
            capsys, "submit", "prepare", *more, *words(*CORPUS)
        )


def test_a_preparation_asks_for_what_it_needs_and_not_for_what_ranks_have(slurm, capsys):
    slurm.put("sinfo", "echo 'cpu*|up|1-00:00:00|1|64|500000|(null)'")
    line = words("cluster=slurm-gpu8", "data=text", "data.paths=[corpus]", "data.out=new", "cluster.nodes=3")
    assert main(["submit", "prepare", "dry_run=true", *line]) == 0, "three tasks share the one node"
    assert "#SBATCH --array=0-2" in capsys.readouterr().out
