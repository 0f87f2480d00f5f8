"""One rank of a run that `distllm launch` has started on several machines with the deepspeed launcher.

It gets one word, the directory of what was submitted: a remote shell would mangle a command line.
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
