"""bash and shellcheck accept every script that distllm renders, and every one of slurm/ as it is."""

import shutil
import subprocess
from pathlib import Path

import pytest

from distllm.cluster.render import (
    Array,
    evaluate_options,
    prepare_options,
    render,
    settings_lines,
    train_options,
)
from distllm.config.compose import compose

ROOT = Path(__file__).resolve().parents[2]
PROFILES = sorted(path.stem for path in (ROOT / "conf/cluster").glob("slurm-*.yaml"))
PLACE = Path("/runs/it's mine/slurm/submissions/001")


def rendered():
    """Every template with every profile, with names and values that need quotes."""
    awkward = ["cluster.setup=['module load \"a b\"']", "cluster.env.NOTE='it\\'s; a | b'"]
    for profile in PROFILES:
        config = compose([f"cluster={profile}", "name=mine", "cluster.slurm.comment='two words'", *awkward])
        lines = settings_lines(config, code=PLACE / "code", python="/env/bin/python", directory=PLACE)
        kinds = {
            "train": train_options(config, PLACE / "job.log", Array(3, at_once=1)),
            "prepare": prepare_options(config, PLACE / "job.log"),
            "evaluate": evaluate_options(config, PLACE / "job.log", 100),
        }
        for name, options in kinds.items():
            yield render(name, options, lines, ["a b", "x='1'"], "distllm submit")


def scripts():
    shipped = [*(ROOT / "slurm").glob("*.sbatch"), *(ROOT / "slurm").glob("*.sh")]
    return [*rendered(), *(path.read_text(encoding="utf-8") for path in sorted(shipped))]


def test_bash_reads_them_all():
    found = scripts()
    assert len(found) >= 3 * len(PROFILES) + 5
    for script in found:
        done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), script


def test_shellcheck_finds_nothing(tmp_path):
    # A package of the system, which make setup does not install; CI does.
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck: apt-get install shellcheck")
    paths = []
    for number, script in enumerate(scripts()):
        paths.append(tmp_path / f"{number}.sh")
        paths[-1].write_text(script)
    done = subprocess.run(["shellcheck", *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
