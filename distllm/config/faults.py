"""The faults that can be injected into a run, and how they are written. Imports no torch.

A fault is ``KIND@STEP:RANKxSTEPS``: it happens on that rank (default 0) in that step, counted from 1 as in
the metrics, and in the ``STEPS - 1`` steps after it (default 1 step). It happens only once in a run: not in
a later attempt that takes the step again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from distllm.errors import ConfigError
from distllm.registry import did_you_mean

KINDS = {
    "kill": "the rank dies by SIGKILL in its forward pass",
    "term": "the rank gets SIGTERM, as from a scheduler",
    "stop": "the rank is frozen by SIGSTOP",
    "hang": "the rank sleeps for ever and never arrives at the next collective",
    "skip_collective": "the rank skips the collective after its forward pass",
    "slow": "the rank needs four times as long for its forward pass, and half a second more",
    "nan": "the rank's loss is not a number",
    "spike": "the rank's loss and gradient are a thousand times too large",
    "bit_flip": "one mantissa bit of one weight of the rank flips before its forward pass",
    "out_of_memory": "the rank asks for more memory than there is",
    "truncate_checkpoint": "the newest checkpoint loses half of a file, and the rank dies by SIGKILL",
    "flip_checkpoint": "a byte of the newest checkpoint flips, and the rank dies by SIGKILL",
    "delete_checkpoint": "a file of the newest checkpoint is deleted, and the rank dies by SIGKILL",
    "disk_full": "the rank cannot write files that are larger than what it wrote so far",
    "clock_skew": "the rank's wall clock jumps back an hour and stays there",
}
AROUND = {
    "corrupt_shard": "every shard of the training data has damaged bytes, until the run was refused",
    "missing_shard": "the shards of the training data are gone, until the run was refused",
    "stalled_shard": "the server of the dataset stops in the middle of a shard",
    "tracker_down": "the server of Weights & Biases cannot be reached",
}
"""Kinds that only `distllm chaos` can inject, because they happen outside of the ranks."""
_FORM = re.compile(r"(?P<kind>\w+)@(?P<step>\d+)(:(?P<rank>\d+))?(x(?P<steps>\d+))?")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: what, from which step on (from 1), on which rank, for how many steps."""

    kind: str
    step: int
    rank: int = 0
    steps: int = 1

    def __str__(self) -> str:
        return f"{self.kind}@{self.step}:{self.rank}" + (f"x{self.steps}" if self.steps > 1 else "")


def parse_fault(text: str) -> Fault:
    """Read a fault as it is written in ``chaos.faults``.

    Raises:
        ConfigError: the form or the kind is wrong.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"cannot read the fault {text!r}",
            where="chaos.faults",
            remedy="write KIND@STEP, KIND@STEP:RANK or KIND@STEP:RANKxSTEPS, such as kill@20:1",
        )
    if found["kind"] not in KINDS:
        raise ConfigError(
            f"unknown kind of fault {found['kind']!r}",
            where="chaos.faults",
            remedy=did_you_mean(found["kind"], KINDS),
        )
    return Fault(found["kind"], int(found["step"]), int(found["rank"] or 0), int(found["steps"] or 1))
