"""One rank of a run that `distllm launch` started on several machines with the deepspeed launcher.

Its only argument is the directory of the submission, because a remote shell would change a command line.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from distllm.cli import main
from distllm.cluster.remote import join
from distllm.launch.train import leave

if __name__ == "__main__":
    leave(main(["train", *join(Path(sys.argv[-1]), os.environ)]))
