"""Four ways to start the same run: the same losses to the last bit, in one run directory each."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

pytestmark = [pytest.mark.dist, pytest.mark.slow]

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPT = str(CHECKOUT / "launch" / "train.py")
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.prepare(tmp_path_factory.mktemp("launch"))


@pytest.fixture(scope="module")
def expected(root):
    done = tiny.distllm("train", *tiny.overrides(root, "name=own"))
    assert done.returncode == 0, done.stderr
    return tiny.exact(tiny.steps(root, "own"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def check(root, name, done, expected):
    assert done.returncode == 0, done.stdout + done.stderr
    assert tiny.exact(tiny.steps(root, name)) == expected
    assert sorted(path.name for path in (root / "runs").iterdir() if path.name.startswith(name)) == [name]


def run(arguments, **more):
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env=tiny.environment(PATH=path, **more),
    )


def test_torchrun(root, expected):
    words = tiny.overrides(root, "name=torchrun")
    done = run([str(BIN / "torchrun"), "--nproc-per-node", "2", "--master-port", free_port(), SCRIPT, *words])
    check(root, "torchrun", done, expected)


def test_deepspeed_launcher(root, expected):
    words = tiny.overrides(root, "name=deepspeed")
    launcher = [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", free_port()]
    done = run([*launcher, SCRIPT, *words], DS_ACCELERATOR="cpu")
    check(root, "deepspeed", done, expected)


@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE", "LOCAL_RANK"),
                                   ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")])  # fmt: skip
def test_bare_variables_as_srun_sets_them(root, expected, names):
    name = names[0].lower()
    words = tiny.overrides(root, f"name={name}")
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    ranks = [
        subprocess.Popen(
            [sys.executable, SCRIPT, *words],
            env=tiny.environment(**common, **dict(zip(names, (str(rank), "2", str(rank)), strict=True))),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=280)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert tiny.exact(tiny.steps(root, name)) == expected


def test_bare_python_starts_the_ranks_itself(root, expected):
    done = run([sys.executable, SCRIPT, *tiny.overrides(root, "name=python")])
    check(root, "python", done, expected)


def test_both_ranks_take_part(root, expected):
    alone = tiny.distllm("train", *tiny.overrides(root, "name=alone", "cluster.procs_per_node=1"))
    assert alone.returncode == 0, alone.stderr
    records = tiny.exact(tiny.steps(root, "alone"))
    assert [record[4] for record in records] == [record[4] for record in expected]
    losses = [(one[1], two[1]) for one, two in zip(records, expected, strict=True)]
    assert all(abs(one - two) < 2e-5 * two for one, two in losses)
    shutil.rmtree(root / "runs" / "alone")
