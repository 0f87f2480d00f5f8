"""Keys of fault injection: what a run or a drill must survive."""

from __future__ import annotations

from dataclasses import dataclass

from distllm.config.options import option


@dataclass(frozen=True)
class ChaosConfig:
    """Injected faults; see `distllm.config.faults` for what each does."""

    faults: tuple[str, ...] = option(
        (), "faults as KIND@STEP, KIND@STEP:RANK or KIND@STEP:RANKxSTEPS, such as [kill@20:1]"
    )
    kinds: tuple[str, ...] = option((), "kinds of faults that distllm chaos injects, in this order")
    spacing: int = option(100, "steps between two faults of distllm chaos", minimum=4)
    seed: int = option(0, "decides in which steps and on which ranks they happen", minimum=0)
    launcher: tuple[str, ...] = option(
        (),
        "command that starts a run of distllm chaos, such as [srun, python, launch/train.py]; "
        "none: distllm train",
    )
