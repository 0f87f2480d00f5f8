"""The scripts of a preparation and of an evaluation, whole, as SLURM gets them."""

from pathlib import Path

from distllm.cluster.render import evaluate_options, prepare_options, render, settings_lines
from distllm.config.compose import compose

PLACE, HERE = Path("/runs/mine/slurm/submissions/001"), Path("/home/me")
PREPARE = """\
#!/usr/bin/env bash
# Made from slurm/prepare.sbatch by: distllm submit
# sbatch accepts this file directly, too; options on its command line override those here.
#SBATCH --job-name=distllm-prepare-mine
#SBATCH --cpus-per-task=12
#SBATCH --output=/runs/mine/slurm/submissions/001/job-%A-%a.log
#SBATCH --nodes=1
#SBATCH --ntasks=1
# the tasks, at most so many (%) at once
#SBATCH --array=0-3%2
#SBATCH --time=24:00:00
# after a preemption or a lost node SLURM queues the job again
#SBATCH --requeue
set -eo pipefail  # not -u: environment modules and conda use unset variables
# as many open files as the site allows: data loaders need many
ulimit -n "$(ulimit -Hn)"
# relative paths of the configuration refer to the directory of the submission
cd /home/me
# the code as it was at submission, and nothing from the working directory
export PYTHONPATH=/runs/mine/slurm/submissions/001/code${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1
# show output at once, and the stack of a crash
export PYTHONUNBUFFERED=1
export PYTHONFAULTHANDLER=1
# cluster.env
export NCCL_DEBUG=WARN
export NCCL_IB_TIMEOUT=22
export NCCL_IB_RETRY_CNT=7
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
export TORCH_FR_BUFFER_SIZE=2000
DISTLLM_PYTHON=/env/bin/python
# what runs, and what it is given
set -- data=text
exec "${DISTLLM_PYTHON:-python3}" -m distllm.cli prepare "$@" data.workers="${SLURM_CPUS_PER_TASK:-1}"
"""
EVALUATE = """\
#!/usr/bin/env bash
# Made from slurm/evaluate.sbatch by: distllm submit
# sbatch accepts this file directly, too; options on its command line override those here.
#SBATCH --job-name=distllm-evaluate-mine-100
#SBATCH --cpus-per-task=12
#SBATCH --output=/runs/mine/slurm/submissions/001/step.log
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --time=01:00:00
# after a preemption or a lost node SLURM queues the job again
#SBATCH --requeue
set -eo pipefail  # not -u: environment modules and conda use unset variables
# as many open files as the site allows: data loaders need many
ulimit -n "$(ulimit -Hn)"
# relative paths of the configuration refer to the directory of the submission
cd /home/me
# the code as it was at submission, and nothing from the working directory
export PYTHONPATH=/runs/mine/slurm/submissions/001/code${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1
# show output at once, and the stack of a crash
export PYTHONUNBUFFERED=1
export PYTHONFAULTHANDLER=1
# cluster.env
export NCCL_DEBUG=WARN
export NCCL_IB_TIMEOUT=22
export NCCL_IB_RETRY_CNT=7
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
export TORCH_FR_BUFFER_SIZE=2000
DISTLLM_PYTHON=/env/bin/python
# what runs, and what it is given
set -- run=/runs/mine step=100
exec "${DISTLLM_PYTHON:-python3}" -m distllm.cli evaluate "$@"
"""


def filled(name, config, options, arguments):
    settings = settings_lines(config, code=PLACE / "code", python="/env/bin/python", directory=HERE)
    return render(name, options, settings, arguments, "distllm submit")


def test_preparation_and_evaluation():
    words = ["cluster=slurm-gpu8", "name=mine", "cluster.slurm.max_array_tasks=2", "cluster.nodes=4"]
    config = compose(words)
    prepare = filled("prepare", config, prepare_options(config, PLACE / "job-%A-%a.log"), ["data=text"])
    assert prepare == PREPARE
    arguments = ["run=/runs/mine", "step=100"]
    assert (
        filled("evaluate", config, evaluate_options(config, PLACE / "step.log", 100), arguments) == EVALUATE
    )
