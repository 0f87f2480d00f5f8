"""A login node: small programs for SLURM's commands, a dataset, an empty queue, and a run to submit."""

from prepared import write_dataset
from programs import Programs

from distllm.cli import main


def login_node(tmp_path, monkeypatch):
    """Go to a directory with a dataset; return the programs, to change what they say."""
    monkeypatch.chdir(tmp_path)
    programs = Programs(tmp_path / "bin", monkeypatch)
    programs.put("sinfo", "echo 'normal*|up|1-00:00:00|4|64|500000|gpu:h100:8'")
    said = 'case "$*" in *test-only*) echo "sbatch: Job 1 to start soon" >&2;; *) echo 41;; esac'
    programs.put("sbatch", said)
    asked = (
        'case "$*" in *job*) echo "JobId=7 JobState=RUNNING";; *) echo "MaxArraySize            = 4";; esac'
    )
    programs.put("scontrol", asked)
    programs.put("squeue")
    programs.put("scancel")
    rows = [[token % 250 + 1 for token in range(start, start + 200)] for start in range(20)]
    write_dataset(tmp_path / "data", train=rows, valid=rows[:4])
    return programs


def words(*more):
    """The overrides of a small run on two nodes."""
    return [
        "data.out=data", "data.seq_len=32", "train.tokens_per_step=512", "train.max_steps=8", "name=mine",
        "cluster.nodes=2", "cluster.slurm.time_limit=60", *more,
    ]  # fmt: skip


def refused(capsys, *line):
    """What a command line says that is refused as a wrong configuration."""
    assert main(list(line)) == 64
    return capsys.readouterr().err
