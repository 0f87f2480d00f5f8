"""One rank of a training run, started by deepspeed, torchrun, srun, or python with their variables set.

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
    """End this rank with ``code``, without running the destructors of the C++ libraries.

    Everything is saved and closed at this point. A thread of torch or gloo that still runs while its object
    is destroyed would abort the process, and a run that asks to be restarted would look like a crash.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    write_exit_code(code)
    os._exit(code)


if __name__ == "__main__":
    leave(main(["train", *sys.argv[1:]]))
