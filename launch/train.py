"""Train, started by any launcher: deepspeed, torchrun, srun, or python with its variables set.

deepspeed --num_gpus 2 launch/train.py experiment=demo
torchrun --nproc-per-node 2 launch/train.py experiment=demo
srun python launch/train.py experiment=demo
"""

from __future__ import annotations

import sys

from distllm.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
