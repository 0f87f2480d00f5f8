"""`distllm submit`, `launch` and the verbs on a login node, with small programs for SLURM's commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from login_node import login_node, refused, words
from transactions import transaction

from distllm.checkpoint.format import STATE
from distllm.cli import main
from distllm.cluster.control import Control
from distllm.cluster.history import History
from distllm.cluster.jobs import jobs_of, note_jobs
from distllm.cluster.snapshot import Submission, submissions_of
from distllm.config.compose import compose
from distllm.observe.ledger import Ledger

pytestmark = pytest.mark.slow


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return login_node(tmp_path, monkeypatch)


def test_a_run_is_copied_checked_by_slurm_and_queued(slurm, capsys):
    assert main(["submit", *words()]) == 0
    told = capsys.readouterr().out
    assert "job 41:" in told
    assert "2 nodes x 1 rank" in told
    test_only, real = slurm.calls("sbatch")
    (path,) = submissions_of(Path("runs/mine").absolute())
    assert test_only[0] == "--test-only"
    assert {"--nodes=2", "--time=60", "--wrap"} < set(test_only)
    assert real == ["--parsable", str(path / "job.sbatch")]
    kept = Submission.load(path)
    assert kept.config().cluster.nodes == 2
    assert list(kept.words) == words()
    assert kept.directory == Path.cwd()
    origin = json.loads((kept.code / "origin.json").read_text())
    assert len(origin["digest"]) == 32
    assert (Path("runs/mine/slurm/job")).read_text() == "41\n"
    script = kept.script.read_text()
    assert f"set -- {path}" in script
    assert "export PYTHONSAFEPATH=1" in script
    assert f"export PYTHONPATH={kept.code}" in script


def test_the_copy_is_what_python_finds_also_from_a_checkout(slurm, tmp_path):
    """A directory called distllm where the job runs must not come before the copy."""
    assert main(["submit", *words()]) == 0
    kept = Submission.load(submissions_of(Path("runs/mine").absolute())[0])
    (tmp_path / "distllm").mkdir()
    (tmp_path / "distllm" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    script = kept.script.read_text()
    last = next(line for line in script.splitlines() if line.startswith("exec "))
    shown = script.replace(last, '"$DISTLLM_PYTHON" -c "import distllm; print(distllm.__file__)"')
    env = {"PATH": os.environ["PATH"]}
    done = subprocess.run(["bash"], input=shown, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(kept.code / "distllm" / "__init__.py"), done.stderr


def test_a_dry_run_writes_nothing(slurm, capsys):
    assert main(["submit", "dry_run=true", *words()]) == 0
    told = capsys.readouterr().out
    assert "#SBATCH --nodes=2" in told
    assert "\n# srun --nodes=2 --ntasks=2 " in told, "the command of the ranks, in their container"
    assert [call[0] for call in slurm.calls("sbatch")] == ["--test-only"]
    assert not Path("runs/mine/slurm").exists()


def test_the_configuration_can_be_shown(slurm, capsys):
    assert main(["submit", "--cfg", "job", *words()]) == 0
    assert "name: mine" in capsys.readouterr().out
    assert not slurm.calls("sinfo")


def test_a_chain_depends_on_the_end_and_after_on_success(slurm, capsys):
    assert main(["submit", "chain=3", "after=7", *words()]) == 0
    given = [call[1] for call in slurm.calls("sbatch")[1:]]
    assert given == ["--dependency=afterok:7", "--dependency=afterany:41", "--dependency=afterany:41"]
    assert capsys.readouterr().out.count("job 41:") == 3


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", "SLURM knows no job 7"),
        ("echo JobId=7 JobState=FAILED", "job 7 has ended without success: FAILED"),
    ],
)
def test_a_job_that_cannot_succeed_is_not_waited_for(slurm, capsys, says, told):
    slurm.put("scontrol", says)
    assert told in refused(capsys, "submit", "after=7", *words())
    corpus = ("data=text", "data.paths=[corpus]", "data.out=new")
    assert told in refused(capsys, "submit", "prepare", "after=7", *words(*corpus))


def test_a_sweep_is_one_array_with_one_copy_of_the_code(slurm, capsys):
    assert main(["submit", "-m", *words("optim.lr=1e-3,2e-3,3e-3", "cluster.slurm.max_array_tasks=2")]) == 0
    runs = sorted(Path("runs").iterdir())
    kept = [Submission.load(submissions_of(run.absolute())[0]) for run in runs]
    assert len({one.code for one in kept}) == 1
    assert {one.config().optim.lr for one in kept} == {1e-3, 2e-3, 3e-3}
    script = kept[0].script.read_text()
    assert "#SBATCH --array=0-2%2" in script
    assert "#SBATCH --job-name=distllm-mine.optim.lr\n" in script, "not the name of one of them"
    assert [jobs_of(run) for run in runs] == [["41_0"], ["41_1"], ["41_2"]]
    assert "(array of 3)" in capsys.readouterr().out


def test_a_preparation_is_an_array(slurm, capsys):
    line = ["submit", "prepare", "after=3", *words("data=text", "data.paths=[corpus]", "data.out=new")]
    Path("corpus").mkdir()
    Path("corpus/a.txt").write_text("a text")
    assert main(line) == 0
    assert "array of 2" in capsys.readouterr().out
    test_only, call = slurm.calls("sbatch")
    assert "--array=0-1" in test_only
    assert call[1] == "--dependency=afterok:3"
    script = Path(call[2]).read_text()
    assert "#SBATCH --array=0-1" in script
    assert "-m distllm.cli prepare" in script
    assert main([*line, "dry_run=true"]) == 0
    assert "distllm.cli prepare" in capsys.readouterr().out
    assert [words[0] for words in slurm.calls("sbatch")] == ["--test-only", "--parsable", "--test-only"]


def test_every_problem_is_told_at_once(slurm, capsys):
    told = refused(
        capsys,
        "submit",
        *words(
            "cluster.slurm.partition=gpu",
            "train.tokens_per_step=500",
            "optim.lrr=1",
            "cluster.head=nowhere.invalid",
            "cluster.slurm.time_limit=soon",
            "cluster.container.kind=pyxis",
        ),
    )
    for part in (
        "there is no partition 'gpu'",
        "tokens_per_step 500",
        "unknown key 'optim.lrr'",
        "'nowhere.invalid' does not resolve",
        "'soon' is not a time",
        "kind=pyxis needs an image",
    ):
        assert part in told, told
    assert not slurm.calls("sbatch")


def test_a_dataset_whose_tokenizer_was_changed_is_refused(slurm, capsys):
    tokenizer = Path("data/tokenizer.json")
    tokenizer.write_text(tokenizer.read_text().replace('"a"', '"\\u0141"', 1))
    told = refused(capsys, "submit", *words())
    assert "tokenizer" in told


def test_a_missing_dataset_is_refused(slurm, capsys):
    assert "holds no prepared dataset" in refused(capsys, "submit", *words("data.out=elsewhere"))


def test_a_run_that_is_queued_already_is_refused(slurm, capsys):
    note_jobs(Path("runs/mine"), ["11", "12"])
    slurm.put("squeue", "echo '12|PENDING|Priority||1:00|x'")
    assert "job 12 of this run directory is already pending" in refused(capsys, "submit", *words())
    Control(Path("runs/mine")).ask("cancel", "now")
    assert main(["submit", *words()]) == 0
    assert Control(Path("runs/mine")).asked("cancel") is None, "a new submission is wanted again"


def checkpoint(config, dataset):
    keep({"facts": {"config": config, "dataset": dataset}})


def keep(state):
    with transaction(Path("runs/mine/checkpoints"), 4) as files:
        files.write(STATE, json.dumps({"format": 1, **state}).encode())


def configuration():
    from dataclasses import asdict

    from distllm.data.manifest import Manifest

    return asdict(compose(words())), Manifest.load(Path("data")).digest


def test_a_run_that_may_go_on_says_from_where(slurm, capsys):
    checkpoint(*configuration())
    assert main(["submit", *words()]) == 0
    assert "resumes from runs/mine/checkpoints/step-000000004" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["seed=3"], "belongs to another experiment: seed"),
        (["optim.lr=1"], "the course of the optimisation would change"),
        (["checkpoint.resume=never"], "the run directory holds a checkpoint"),
    ],
)
def test_a_run_that_may_not_go_on_is_refused(slurm, capsys, more, said):
    checkpoint(*configuration())
    assert said in refused(capsys, "submit", *words(*more))


def test_another_dataset_or_a_strange_checkpoint_is_refused(slurm, capsys):
    config, _ = configuration()
    checkpoint(config, "another")
    assert "the dataset has changed" in refused(capsys, "submit", *words())
    keep({})
    assert "facts" in refused(capsys, "submit", *words())
    (Path("runs/mine/checkpoints/step-000000004") / STATE).write_text("{}")
    assert "every checkpoint in runs/mine is damaged" in refused(capsys, "submit", *words())


def test_resume_never_holds_for_the_first_start_only(slurm):
    assert main(["submit", *words("checkpoint.resume=never")]) == 0
    kept = Submission.load(submissions_of(Path("runs/mine").absolute())[0])
    assert kept.config().checkpoint.resume == "auto"


def measured(seconds):
    Path("runs/mine").mkdir(parents=True)
    lines = [{"kind": "step", "attempt": 1, "step": step, "time": seconds * step} for step in range(1, 9)]
    torn = '{"kind": "st'
    Path("runs/mine/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)


def test_the_time_that_is_needed_is_told(slurm, capsys):
    measured(10)
    assert main(["submit", *words("checkpoint.every_steps=4")]) == 0
    assert (
        "1m20s for 8 steps of 10 s, measured in this run directory: about 1 start under"
        in capsys.readouterr().out
    )


def test_a_limit_that_ends_before_the_first_checkpoint_is_refused(slurm, capsys):
    measured(1000)
    told = refused(capsys, "submit", *words("checkpoint.every_steps=4"))
    assert "one checkpoint interval takes 1h06m40s" in told


def test_the_planner_tells_what_was_not_measured(slurm, capsys):
    line = words("cluster=slurm-gpu8", "cluster.slurm.cpus_per_rank=8", "cluster.slurm.memory=64G")
    assert main(["submit", *line, "dry_run=true"]) == 0
    assert "predicted by the planner: about 1 start under" in capsys.readouterr().out


def test_a_run_that_does_not_fit_the_memory_is_refused_with_settings_that_do(slurm, capsys):
    line = words("cluster=slurm-gpu8", "cluster.slurm.cpus_per_rank=8", "cluster.hardware.memory_gb=0.5")
    told = refused(capsys, "submit", *line, "model=llama-1b", "engine=zero0")
    assert told.count("a rank needs about") == 1
    assert "--parsable" not in [call[0] for call in slurm.calls("sbatch")]


def test_no_slurm_here_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    assert main(["submit", *words()]) == 64
    assert "sinfo is not installed on this machine" in capsys.readouterr().err
    assert main(["jobs"]) == 0
    assert "no run in runs" in capsys.readouterr().out


def test_the_verbs(slurm, capsys):
    run = Path("runs/mine")
    assert main(["submit", *words()]) == 0
    slurm.put("squeue", "echo '41|RUNNING|None|n[1-2]|1:00|x'")
    start = History(run).begin("41", ["n1", "n2"], "s")
    (run / "slurm/starts/001").mkdir(parents=True)
    log = run / "slurm/starts/001/rank-0.log"
    log.write_text("step 1\nTraceback (most recent call last):\nMemoryError: all of it\n")
    Ledger(run / "ledger.jsonl", 1).event("attempt", host="n1", pid=1, world_size=2)
    capsys.readouterr()

    assert main(["jobs"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == [
        "mine", "41", "running", "0", "0", "1", "n[1-2]",
    ]  # fmt: skip
    assert main(["save", "run=mine"]) == 0
    assert main(["stop", "run=mine"]) == 0
    assert not slurm.calls("scancel"), "a running one saves first"
    assert main(["status", "run=mine"]) == 0
    told = capsys.readouterr().out
    assert "on n1,n2 from step 0: runs" in told
    assert "asked to stop: distllm stop, by" in told
    assert "| MemoryError: all of it" in told

    History(run).end(start, "failed", "srun ended with 1")
    History(run).exclude({"n2": "hot"})
    assert main(["why", "run=mine"]) == 0
    told = capsys.readouterr().out
    assert "first error, on rank 0: out of memory" in told
    assert "start 1 on n1,n2: failed: srun ended with 1" in told
    assert main(["cancel", "run=mine"]) == 0
    assert slurm.calls("scancel") == [["41"]]
    assert Control(run).asked("cancel") is not None


def test_stop_takes_a_job_that_waits_out_of_the_queue(slurm, capsys):
    assert main(["submit", *words()]) == 0
    slurm.put("squeue", "echo '41|PENDING|Priority||1:00|x'")
    assert main(["stop", "run=mine"]) == 0
    assert "removed from the queue: waiting job 41" in capsys.readouterr().out
    assert slurm.calls("scancel") == [["41"]]


def test_verbs_that_come_too_late_say_so(slurm, capsys):
    assert main(["submit", *words()]) == 0
    Ledger(Path("runs/mine/ledger.jsonl"), 1).event("done", step=8)
    assert "neither running nor waiting: done" in refused(capsys, "save", "run=mine")
    assert main(["cancel", "run=mine"]) == 0
    assert "has no job in the queue" in capsys.readouterr().out
    assert "run=... is missing" in refused(capsys, "stop")
    assert "no run 'other'" in refused(capsys, "why", "run=other")


def test_a_job_script_in_no_job_says_so(slurm, capsys, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert main(["submit", *words()]) == 0
    path = submissions_of(Path("runs/mine").absolute())[0]
    assert main(["job", str(path)]) == 70
    assert "this is not a SLURM job" in capsys.readouterr().err


def hosts(text="localhost slots=2\n127.0.0.1 slots=2\n"):
    Path("hosts").write_text(text)
    return "hostfile=hosts"


def test_launch_prints_the_deepspeed_command(slurm, capsys):
    slurm.put("pdsh")
    assert main(["launch", "dry_run=true", hosts(), *words()]) == 0
    told = capsys.readouterr().out
    assert "2 nodes x 2 ranks" in told
    for part in ("--launcher=pdsh", "--master_addr=localhost", "--master_port=29400", "--no_ssh_check"):
        assert part in told
    assert not slurm.calls("sinfo"), "there is no SLURM in this"


def test_launch_includes_and_excludes(slurm, capsys):
    slurm.put("pdsh")
    assert main(["launch", "dry_run=true", hosts(), "exclude=localhost", *words()]) == 0
    assert "1 node x 2 ranks" in capsys.readouterr().out


def test_launch_needs_its_launcher(slurm, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(slurm.directory))
    assert main(["launch", "launcher=openmpi", hosts(), *words()]) == 70
    assert "mpirun is not installed" in capsys.readouterr().err
    assert not Path("runs/mine/slurm").exists()


def test_launch_refuses_what_cannot_work(slurm, capsys):
    told = refused(capsys, "launch", hosts("a.invalid slots=1\nlocalhost slots=2\nx\n"), *words("seed=x"))
    for part in ("'a.invalid' does not resolve", "cannot read 'x'", "different numbers", "seed="):
        assert part in told
    assert "give hostfile=FILE, or rendezvous" in refused(capsys, "launch", *words())
    told = refused(capsys, "launch", "rendezvous=nowhere.invalid:1", "elastic=3:2", *words())
    for part in ("is not HOST:PORT", "'nowhere.invalid' does not resolve", "elastic=3:2 allows no number"):
        assert part in told


def test_launch_with_torchrun(slurm, capsys):
    line = ["launch", "dry_run=true", "rendezvous=localhost:29400", "elastic=1:2", *words()]
    assert main(line) == 0
    told = capsys.readouterr().out
    for part in ("--nnodes=1:2", "--rdzv-id=mine", "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1,SIGUSR2"):
        assert part in told
    told = refused(capsys, *line[:3], "elastic=2:4", *words())
    assert "is not a whole number of sequences on 3 machines" in told
    assert "elastic=x is not a number of machines" in refused(capsys, *line[:3], "elastic=x", *words())


def test_the_help_of_every_new_command(capsys):
    for name in ("submit", "launch", "jobs", "status", "logs", "why", "stop", "save", "requeue", "cancel"):
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        assert f"distllm {name}" in capsys.readouterr().out


def test_none_of_it_imports_torch(slurm):
    code = "import sys; from distllm.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "submit", "dry_run=true", *words()],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
