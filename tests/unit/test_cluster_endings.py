"""How SLURM ended a start, and which node failed, from logs as SLURM 22.05 really writes them."""

import pytest

from distllm.cluster.control import Control
from distllm.cluster.endings import ending_of
from distllm.cluster.history import History
from distllm.cluster.surroundings import surroundings
from distllm.cluster.suspects import suspect_of
from distllm.config.compose import compose

STAMP = "CANCELLED AT 2026-11-30T03:46:00"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "slurm/submissions/001").mkdir(parents=True)
    return tmp_path


def begin(run, job="7"):
    return History(run).begin(job, ["n1", "n2"], str(run / "slurm/submissions/001"))


def told(run, *lines, name="job-7.log"):
    with (run / "slurm/submissions/001" / name).open("a") as log:
        log.write("".join(f"{line}\n" for line in lines))


def started(number):
    return f"[2026-11-30 03:45:57] distllm: start {number} on n1 n2, after step 0"


@pytest.mark.parametrize(
    ("mark", "why"),
    [
        (f"slurmstepd-n1: error: *** JOB 7 ON n1 {STAMP} DUE TO PREEMPTION ***", "preempted"),
        (f"slurmstepd-n1: error: *** JOB 7 ON n1 {STAMP} DUE TO TIME LIMIT ***", "the time limit"),
        (f"slurmstepd-n1: error: *** JOB 7 ON n1 {STAMP} DUE TO JOB REQUEUE ***", "requeued by scontrol"),
        (f"slurmstepd-n1: error: *** JOB 7 ON n1 {STAMP} ***", "cancelled by scancel"),
        (
            f"slurmstepd: *** STEP 7.0 ON n1 {STAMP} DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***",
            "a node was lost",
        ),
    ],
)
def test_the_reason_stands_in_the_log_of_the_job(run, mark, why):
    start = begin(run)
    told(run, started(1), mark)
    ending = ending_of(run, start)
    assert why in ending.why
    assert ending.remedy


def test_each_start_has_its_own_part_of_a_log_that_is_appended_to(run):
    first, second = begin(run), begin(run)
    told(run, started(1), f"*** JOB 7 ON n1 {STAMP} DUE TO PREEMPTION ***", started(2))
    told(run, f"*** JOB 7 ON n1 {STAMP} DUE TO TIME LIMIT ***")
    assert "preempted" in ending_of(run, first).why
    assert "time limit" in ending_of(run, second).why


def test_a_task_of_an_array_has_a_log_of_its_own(run):
    start = begin(run, "7_2")
    told(run, started(1), f"*** JOB 9 ON n1 {STAMP} ***", name="job-7-2.log")
    assert "scancel" in ending_of(run, start).why
    first = run / "first"  # of the sweep: its directory holds the logs of all
    first.mkdir()
    (first / "job-7-2.log").write_text(f"{started(1)}\n*** JOB 9 ON n1 {STAMP} DUE TO PREEMPTION ***\n")
    (run / "slurm/submissions/001/job.sbatch").write_text(f"#SBATCH --output={first}/job-%A-%a.log\n")
    assert "preempted" in ending_of(run, start).why


def test_the_log_of_a_rank_tells_it_too(run):
    start = begin(run)
    logs = run / "slurm/starts/001"
    logs.mkdir(parents=True)
    (logs / "rank-1.log").write_text(
        f"slurmstepd-n2: error: *** STEP 7.1 ON n1 {STAMP} DUE TO PREEMPTION ***\n"
    )
    assert "preempted" in ending_of(run, start).why


def test_who_cancelled_and_which_node_was_lost(run):
    start = begin(run)
    assert "the reason was not recorded" in ending_of(run, start).why
    assert "sacct -D -j 7" in ending_of(run, start).remedy
    History(run).exclude({"n2": "down* after start 1", "n9": "hot"})
    assert ending_of(run, start).why == "a node was lost: n2 down* after start 1"
    Control(run).ask("cancel", "distllm cancel, by me on login1")
    assert ending_of(run, start).why == "cancelled: distllm cancel, by me on login1"


def blamed(tmp_path, *, exits=(), logs=None, more=()):
    (tmp_path / "exits").mkdir(exist_ok=True)
    for rank, code in dict(exits).items():
        (tmp_path / "exits" / str(rank)).write_text(f"{code}\n")
    for rank, text in (logs or {}).items():
        (tmp_path / f"rank-{rank}.log").write_text(text)
    cluster = compose(["cluster.nodes=3", "cluster.procs_per_node=2", *more]).cluster
    return suspect_of(tmp_path, ["n1", "n2", "n3"], cluster)


ECC = "Traceback (most recent call last):\nRuntimeError: CUDA error: uncorrectable ECC error encountered\n"
KEY = "Traceback (most recent call last):\nKeyError: 'a'\n"
LOST = "Traceback (most recent call last):\nRuntimeError: Connection closed by peer [10.0.0.2]:38018\n"


def test_a_gpu_that_fails_speaks_against_its_node(tmp_path):
    assert blamed(tmp_path, logs={0: LOST, 3: ECC, 5: LOST}) == "n2"


def test_a_rank_that_ends_without_a_word_does_too(tmp_path):
    assert blamed(tmp_path, exits={0: 70, 1: 70, 2: 70, 3: 70, 4: 70}, logs={0: LOST}) == "n3"


@pytest.mark.parametrize(
    "case",
    [
        {"exits": {0: 70, 2: 70, 4: 70}},  # ranks of several nodes are silent
        {},  # all are
        {
            "exits": dict.fromkeys(range(6), 70),
            "logs": {1: "Traceback (most recent call last):\nKeyError: 'a'\n"},
        },
        {"logs": {3: ECC}, "more": ["cluster.slurm.srun_options=['--distribution=cyclic']"]},
    ],
)
def test_nobody_is_blamed_without_evidence(tmp_path, case):
    assert blamed(tmp_path, **case) is None


def test_the_environment_is_told_without_secrets():
    env = {"NCCL_DEBUG": "WARN", "OMP_NUM_THREADS": "4", "HOME": "/home/me", "DS_API_KEY": "0123456789abc"}
    assert surroundings(env) == "DS_API_KEY=[redacted] NCCL_DEBUG=WARN OMP_NUM_THREADS=4"


def test_what_is_written_down_of_a_failure_counts_by_node(tmp_path):
    history = History(tmp_path)
    for suspect in ("n1", None, "n1", "n2"):
        history.end(history.begin("7", ["n1", "n2"], "s"), "failed", "killed", suspect)
    assert [start.suspect for start in history.starts()] == ["n1", None, "n1", "n2"]
    assert (history.failures_on("n1"), history.failures_on("n2"), history.failures_on("n3")) == (2, 1, 0)
