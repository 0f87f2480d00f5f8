"""The tutorial of clusters, command by command, with its own profile; programs stand for those of SLURM."""

import re
import shlex
from pathlib import Path

import pytest
from login_node import login_node
from prepared import write_dataset

from distllm.cli import main
from distllm.cluster.jobs import note_jobs

pytestmark = pytest.mark.slow
PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "cluster.md"
RUNS = "41|RUNNING|None|n1|1:00|x"


def test_the_tutorial_can_be_followed(tmp_path, monkeypatch, capsys):
    slurm = login_node(tmp_path, monkeypatch)
    slurm.put("sinfo", "echo 'gpu|up|1-00:00:00|4|128|500000|gpu:h100:8'")
    text = PAGE.read_text(encoding="utf-8")
    (profile,) = re.findall(r"^```yaml\n# (\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    Path(profile[0]).parent.mkdir(parents=True)
    Path(profile[0]).write_text(profile[1])
    lines = re.findall(r"^distllm ([^#\n]+)", text, re.MULTILINE)
    assert len(lines) == 14
    for line in lines:
        words = shlex.split(line)
        if words[0] in ("save", "requeue"):  # these are for a run that runs
            note_jobs(Path("runs/demo"), ["41"])
            slurm.put("squeue", f"echo '{RUNS}'")
        if words[0] == "logs":
            log = Path("runs/demo/logs/rank-0.log")
            log.parent.mkdir(parents=True)
            log.write_text("a step\n")
        if words[:2] == ["submit", "-m"]:  # by then the data are there
            rows = [[token % 250 + 1 for token in range(start, start + 400)] for start in range(20)]
            write_dataset(Path("data/demo"), train=rows, valid=rows)
        assert main(words) == 0, f"{line}\n{capsys.readouterr().err}"
    given = [" ".join(call) for call in slurm.calls("sbatch") if call[0] == "--parsable"]
    assert len(given) == 3
    assert "--dependency=afterok:41" in given[1]
    told = capsys.readouterr().out
    assert "data/demo does not exist yet; it is checked when job 41 has made it" in told
    assert "(array of 2)" in told
