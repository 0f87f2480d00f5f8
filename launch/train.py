"""Train, started by any launcher: deepspeed, torchrun, srun, or python with its variables set.

deepspeed --num_gpus 2 launch/train.py experiment=demo
torchrun --nproc-per-node 2 launch/train.py experiment=demo
srun python launch/train.py experiment=demo
"""

from __future__ import annotations

import os
import sys

from distllm.cli import main
from distllm.cluster.outcome import write_exit_code


def leave(code: int) -> None:
    """End this rank with ``code``, without the tear-down of the C++ libraries.

    Everything is closed and saved here. What is left are threads of torch and gloo, and one that
    still runs when its object is destroyed aborts the process: a run that has saved its state and
    asks to be started again would be taken for one that crashed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    write_exit_code(code)
    os._exit(code)


if __name__ == "__main__":
    leave(main(["train", *sys.argv[1:]]))
