"""The job scripts and the srun command lines of every cluster profile, whole, as SLURM gets them."""

from pathlib import Path

import pytest

from distllm.cluster.render import render, settings_lines, train_options
from distllm.cluster.snapshot import Submission
from distllm.cluster.srun import ranks_command
from distllm.config.compose import compose

PLACE = Path("/runs/mine/slurm/submissions/001")
CODE, HERE = PLACE / "code", Path("/home/me")
TOP = """\
#!/usr/bin/env bash
# Made from slurm/train.sbatch by: distllm submit
# sbatch accepts this file directly, too; options on its command line override those here.
"""
WARNED = """\
# so many seconds before the time limit this script (B:) gets USR2 and asks the ranks to save
#SBATCH --signal=B:USR2@300
"""
RETURNS = """\
# after a preemption or a lost node SLURM queues the job again
#SBATCH --requeue
"""
BEGINS = """\
# a job that returns appends to the same log
#SBATCH --open-mode=append
set -eo pipefail  # not -u: environment modules and conda use unset variables
# as many open files as the site allows: data loaders need many
ulimit -n "$(ulimit -Hn)"
# relative paths of the configuration refer to the directory of the submission
cd /home/me
"""
THE_CODE = """\
# the code as it was at submission, and nothing from the working directory
export PYTHONPATH=/runs/mine/slurm/submissions/001/code${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1
# show output at once, and the stack of a crash
export PYTHONUNBUFFERED=1
export PYTHONFAULTHANDLER=1
"""
RUNS = """\
DISTLLM_PYTHON=/env/bin/python
# what runs, and what it is given
set -- /runs/mine/slurm/submissions/001
exec "${DISTLLM_PYTHON:-python3}" -m distllm.cli job "$@"
"""
PROFILES = {
    "slurm-cpu": (
        ["cluster.nodes=4"],
        TOP
        + """\
#SBATCH --job-name=distllm-mine
#SBATCH --cpus-per-task=16
#SBATCH --output=/runs/mine/slurm/submissions/001/job-%j.log
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=2
#SBATCH --time=24:00:00
"""
        + WARNED
        + RETURNS
        + BEGINS
        + THE_CODE
        + RUNS,
        [
            "srun",
            "--nodes=4",
            "--ntasks=8",
            "--ntasks-per-node=2",
            "--cpus-per-task=16",
            "--kill-on-bad-exit=1",
            "--wait=60",
            "--export=ALL",
            "--output=/logs/rank-%t.log",
            "/env/bin/python",
            "-m",
            "distllm.launch.train",
            "seed=1",
        ],
    ),
    "slurm-gpu8": (
        [
            "cluster.nodes=16",
            "cluster.slurm.partition=gpu",
            "cluster.slurm.account=ml",
            "cluster.slurm.time_limit=2-0",
        ],
        TOP
        + """\
#SBATCH --job-name=distllm-mine
#SBATCH --partition=gpu
#SBATCH --account=ml
#SBATCH --cpus-per-task=12
# all memory of a node
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --output=/runs/mine/slurm/submissions/001/job-%j.log
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=2-0
"""
        + WARNED
        + RETURNS
        + BEGINS
        + THE_CODE
        + """\
# cluster.env
export NCCL_DEBUG=WARN
export NCCL_IB_TIMEOUT=22
export NCCL_IB_RETRY_CNT=7
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
export TORCH_FR_BUFFER_SIZE=2000
"""
        + RUNS,
        [
            "srun",
            "--nodes=16",
            "--ntasks=128",
            "--ntasks-per-node=8",
            "--cpus-per-task=12",
            "--kill-on-bad-exit=1",
            "--wait=60",
            "--export=ALL",
            "--output=/logs/rank-%t.log",
            "/env/bin/python",
            "-m",
            "distllm.launch.train",
            "seed=1",
        ],
    ),
    "slurm-efa": (
        ["cluster.nodes=2", "cluster.slurm.requeue=false"],
        TOP
        + """\
#SBATCH --job-name=distllm-mine
#SBATCH --cpus-per-task=12
# all memory of a node
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --output=/runs/mine/slurm/submissions/001/job-%j.log
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
"""
        + WARNED
        + """\
# SLURM starts the job once
#SBATCH --no-requeue
"""
        + BEGINS
        + THE_CODE
        + """\
# cluster.env
export NCCL_DEBUG=WARN
export FI_PROVIDER=efa
export FI_EFA_USE_DEVICE_RDMA=1
export NCCL_SOCKET_IFNAME='^docker,lo,veth'
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
export TORCH_FR_BUFFER_SIZE=2000
"""
        + RUNS,
        [
            "srun",
            "--nodes=2",
            "--ntasks=16",
            "--ntasks-per-node=8",
            "--cpus-per-task=12",
            "--kill-on-bad-exit=1",
            "--wait=60",
            "--export=ALL",
            "--output=/logs/rank-%t.log",
            "/env/bin/python",
            "-m",
            "distllm.launch.train",
            "seed=1",
        ],
    ),
    "slurm-slingshot": (
        [
            "cluster.nodes=8",
            "cluster.slurm.constraint=gpu",
            "cluster.setup=['module load cray-mpich','module load aws-ofi-nccl']",
        ],
        TOP
        + """\
#SBATCH --job-name=distllm-mine
#SBATCH --constraint=gpu
#SBATCH --cpus-per-task=16
# all memory of a node
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --output=/runs/mine/slurm/submissions/001/job-%j.log
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
"""
        + WARNED
        + RETURNS
        + BEGINS
        + """\
# cluster.setup
module load cray-mpich
module load aws-ofi-nccl
"""
        + THE_CODE
        + """\
# cluster.env
export NCCL_DEBUG=WARN
export NCCL_SOCKET_IFNAME=hsn
export NCCL_NET_GDR_LEVEL=PHB
export FI_CXI_DEFAULT_CQ_SIZE=131072
export FI_CXI_RDZV_PROTO=alt_read
export FI_MR_CACHE_MONITOR=userfaultfd
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
"""
        + RUNS,
        [
            "srun",
            "--nodes=8",
            "--ntasks=32",
            "--ntasks-per-node=4",
            "--cpus-per-task=16",
            "--kill-on-bad-exit=1",
            "--wait=60",
            "--export=ALL",
            "--output=/logs/rank-%t.log",
            "/env/bin/python",
            "-m",
            "distllm.launch.train",
            "seed=1",
        ],
    ),
    "slurm-pyxis": (
        [
            "cluster.nodes=2",
            "cluster.container.image=/images/distllm.sqsh",
            "cluster.container.mounts=['/corpus:/corpus']",
        ],
        TOP
        + """\
#SBATCH --job-name=distllm-mine
#SBATCH --cpus-per-task=12
# all memory of a node
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --output=/runs/mine/slurm/submissions/001/job-%j.log
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
"""
        + WARNED
        + RETURNS
        + BEGINS
        + THE_CODE
        + """\
# cluster.env
export NCCL_DEBUG=WARN
export NCCL_IB_TIMEOUT=22
export NCCL_IB_RETRY_CNT=7
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
export TORCH_FR_BUFFER_SIZE=2000
"""
        + RUNS,
        [
            "srun",
            "--nodes=2",
            "--ntasks=16",
            "--ntasks-per-node=8",
            "--cpus-per-task=12",
            "--kill-on-bad-exit=1",
            "--wait=60",
            "--export=ALL",
            "--output=/logs/rank-%t.log",
            "--container-image=/images/distllm.sqsh",
            "--container-mounts=/corpus:/corpus,/home/me:/home/me,/runs/mine:/runs/mine,/runs/mine/slurm/submissions/001/code:/runs/mine/slurm/submissions/001/code,/home/me/data/pydocs:/home/me/data/pydocs",
            "--container-workdir=/home/me",
            "--no-container-mount-home",
            "--container-env=PYTHONPATH,PYTHONSAFEPATH,PYTHONUNBUFFERED,PYTHONFAULTHANDLER,MASTER_ADDR,"
            "MASTER_PORT,DISTLLM_FENCE,DISTLLM_EXITS,DISTLLM_SETTLED,NCCL_DEBUG,NCCL_IB_TIMEOUT,"
            "NCCL_IB_RETRY_CNT,TORCH_NCCL_ASYNC_ERROR_HANDLING,TORCH_FR_BUFFER_SIZE",
            "python3",
            "-m",
            "distllm.launch.train",
            "seed=1",
        ],
    ),
    "slurm-apptainer": (
        [
            "cluster.nodes=2",
            "cluster.container.image=/images/distllm.sif",
            "cluster.slurm.srun_options=['--cpu-bind=cores']",
        ],
        TOP
        + """\
#SBATCH --job-name=distllm-mine
#SBATCH --cpus-per-task=12
# all memory of a node
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --output=/runs/mine/slurm/submissions/001/job-%j.log
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
"""
        + WARNED
        + RETURNS
        + BEGINS
        + THE_CODE
        + """\
# cluster.env
export NCCL_DEBUG=WARN
export NCCL_IB_TIMEOUT=22
export NCCL_IB_RETRY_CNT=7
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
export TORCH_FR_BUFFER_SIZE=2000
"""
        + RUNS,
        [
            "srun",
            "--nodes=2",
            "--ntasks=16",
            "--ntasks-per-node=8",
            "--cpus-per-task=12",
            "--kill-on-bad-exit=1",
            "--wait=60",
            "--export=ALL",
            "--output=/logs/rank-%t.log",
            "--cpu-bind=cores",
            "apptainer",
            "exec",
            "--nv",
            "--env",
            "PYTHONNOUSERSITE=1",
            "--bind",
            "/home/me:/home/me",
            "--bind",
            "/runs/mine:/runs/mine",
            "--bind",
            "/runs/mine/slurm/submissions/001/code:/runs/mine/slurm/submissions/001/code",
            "--bind",
            "/home/me/data/pydocs:/home/me/data/pydocs",
            "--pwd",
            "/home/me",
            "/images/distllm.sif",
            "python3",
            "-m",
            "distllm.launch.train",
            "seed=1",
        ],
    ),
}


def settled(profile, more):
    return compose([f"cluster={profile}", "name=mine", *more])


def filled(name, config, options, arguments):
    settings = settings_lines(config, code=CODE, python="/env/bin/python", directory=HERE)
    return render(name, options, settings, arguments, "distllm submit")


@pytest.mark.parametrize("profile", PROFILES)
def test_job_script(profile):
    more, script, _ = PROFILES[profile]
    config = settled(profile, more)
    assert filled("train", config, train_options(config, PLACE / "job-%j.log"), [str(PLACE)]) == script


@pytest.mark.parametrize("profile", PROFILES)
def test_command_of_the_ranks(profile, monkeypatch):
    monkeypatch.setattr("sys.executable", "/env/bin/python")
    more, _, command = PROFILES[profile]
    assert (
        ranks_command(Submission(PLACE, ("seed=1",), CODE, HERE), settled(profile, more), Path("/logs"))
        == command
    )


def test_every_profile_for_slurm_is_here():
    there = {path.stem for path in (Path(__file__).parents[2] / "conf/cluster").glob("slurm-*.yaml")}
    assert there == set(PROFILES)
