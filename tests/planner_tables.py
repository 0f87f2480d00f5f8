"""Published figures of other programs, ready to be predicted.

The tables are JSON files in ``tests/anchors``, each with its source and with what it does not print
and had to be assumed. The efficiencies of `distllm.plan.fitted` come from the table `FIT`; the
others are predicted with them and never looked at by the fit (`planner_fit`).
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distllm.config.compose import PACKAGE_CONF
from distllm.config.schema_hardware import HardwareConfig
from distllm.config.yaml import from_yaml
from distllm.plan.conventions import CONVENTIONS
from distllm.plan.fitted import FITTED
from distllm.plan.layout import Layout, Software
from distllm.plan.machine import Efficiency, Machine
from distllm.plan.memory import peak_memory, stage_peaks
from distllm.plan.profile import machine_of_hardware
from distllm.plan.speed import step_time
from distllm.plan.work import Work

FIT = "llm_foundry_h100"
ASKED = ("nanotron_h100", "megatron_h100", "torchtitan_h100", "deepspeed_h200")
"""The blind tables that the planner's bars are about."""
FURTHER = (
    "llm_foundry_a100_80gb",
    "llm_foundry_a100_40gb",
    "torchtitan_a100",
    "torchtitan_405b_h100",
    "internevo_a100",
    "deepspeed_b200",
)
"""Blind tables on other devices and clusters, chosen by a rule before any of their rows was computed."""
BLIND = ASKED + FURTHER
RUNS = "nanotron_runs"
"""All runs of which nanotron's table has the best; most are slow for reasons that no plan can know."""
_DIRECTORY = Path(__file__).parent / "anchors"
# Fused attention on an H100: FLOP/s of long causal rows with heads of 128, forward and backward. Each figure
# is a published one, over what `distllm.plan.blocks` takes off for its length of row.
# fa2: as in conf/cluster/h100.yaml. fa3: 660 forward, 575 backward at 8k (Dao-AILab/flash-attention
# issue 1893).
# cudnn: 518 and 499 at 4k (Shah et al. 2024, FlashAttention-3, figures 5 and 6).
# triton: llm-foundry's own kernel; no figure is published, so it is fitted with the efficiencies.
# On an A100: FlashAttention-2 as in conf/cluster/a100.yaml, the first FlashAttention at half of it (Dao 2023,
# abstract), and the Triton kernel slower than on an H100 by as much as FlashAttention-2 is.
# On a B200: FlashAttention-4 at 1.95 times FlashAttention-3 (ml-engineering, when-to-upgrade-gpus).
_TRITON = 184.9
ATTENTION_TFLOPS = {
    "fa2": 335.0,
    "fa3": 636.0,
    "cudnn": 570.0,
    "triton": _TRITON,
    "fa2_a100": 192.0,
    "fa1_a100": 96.0,
    "triton_a100": _TRITON * 192 / 335,
    "fa4": 1240.0,
}


@dataclass(frozen=True, slots=True)
class Point:
    """One published row, ready to be predicted."""

    label: str
    work: Work
    layout: Layout
    software: Software
    machine: Machine
    flops_per_token: float
    peak_flops: float
    mfu: float
    memory_gb: float | None
    kernel: str
    first_stage: bool

    def predicted_mfu(self, efficiency: Efficiency) -> float:
        """Return the utilisation, in per cent, of the operations that the table counts."""
        seconds = step_time(self.work, self.layout, self.software, self.machine, efficiency).total
        flops = self.flops_per_token * self.layout.tokens_per_step
        return 100 * flops / (seconds * self.layout.ranks * self.peak_flops)

    def predicted_memory_gb(self) -> float:
        """Return the peak of the fullest rank, in 10**9 bytes."""
        if self.first_stage:
            return stage_peaks(self.work, self.layout, self.software)[0].device / 1e9
        return peak_memory(self.work, self.layout, self.software).device / 1e9


def read_table(name: str) -> dict[str, Any]:
    """Return a table as it is written down; one that is ``like`` another has all else from there."""
    content: dict[str, Any] = json.loads((_DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
    if "like" in content:
        content = read_table(content["like"]) | content
    if isinstance(content["rows"], str):
        with (_DIRECTORY / content["rows"]).open(encoding="utf-8") as lines:
            content["rows"] = [
                {key: value if key == "model" else json.loads(value) for key, value in row.items()}
                for row in csv.DictReader(lines)
            ]
    return content


def machine_of_profile(name: str) -> Machine:
    """Return the machine of ``conf/cluster/NAME.yaml``."""
    stated = from_yaml(PACKAGE_CONF / "cluster" / f"{name}.yaml")["hardware"]
    known = {item.name for item in dataclasses.fields(HardwareConfig)}
    return machine_of_hardware(HardwareConfig(**{key: stated[key] for key in known & stated.keys()}))


def points(name: str) -> Iterator[Point]:
    """Yield the rows of a table, one of `FIT`, `BLIND` and `RUNS`."""
    table = read_table(name)
    machine = machine_of_profile(table["machine"]).throttled(table.get("throttle", 1.0))
    machine = dataclasses.replace(machine, **table.get("hardware", {}))
    for row in table["rows"]:
        if "samples" in row:
            yield _fastest([_point(table, choice, machine) for choice in _choices(row)])
        else:
            yield _point(table, row, machine)


def _choices(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row that states only a rank's samples with each micro-batch that its pipeline takes."""
    samples = row["samples"]
    for micro in (size for size in range(1, samples + 1) if samples % size == 0):
        # an interleaved pipeline takes its micro-batches in turns of all stages
        if samples // micro % row.get("pipeline", 1) == 0:
            yield {**row, "micro_batch": micro, "accumulation": samples // micro}


def _fastest(choices: list[Point]) -> Point:
    """Return the choice the planner would make: the fastest that it believes to fit."""
    room = choices[0].machine.memory_bytes * (1 - HardwareConfig().reserve) / 1e9
    return max(
        (choice for choice in choices if choice.predicted_memory_gb() <= room),
        key=lambda choice: choice.predicted_mfu(FITTED),
    )


def _point(table: Mapping[str, Any], row: Mapping[str, Any], machine: Machine) -> Point:
    work = Work(**table["models"][row["model"]])
    layout = Layout(
        ranks=row["gpus"],
        seq_len=row.get("seq_len") or table["seq_len"],
        micro_batch=row["micro_batch"],
        accumulation=row.get("accumulation", 1),
        zero_stage=row.get("zero_stage", 3),
        checkpointing=row.get("checkpointing", "none"),
        tensor=row.get("tensor", 1),
        pipeline=row.get("pipeline", 1),
        virtual_stages=row.get("virtual_stages", 1),
        offload=row.get("offload", "none"),
    )
    habits = table["software"] | table.get(f"stage_{layout.zero_stage}", {})
    habits |= {item.name: row[item.name] for item in dataclasses.fields(Software) if item.name in row}
    kernel = row.get("attention") or table["attention"]
    attention = ATTENTION_TFLOPS[kernel] * 1e12 * table.get("throttle", 1.0)
    machine = dataclasses.replace(machine, attention_flops=attention)
    peak = table.get("peak_tflops", 989) * 1e12
    flops = CONVENTIONS[table["convention"]](work, layout.seq_len)
    mfu, speed = row.get("mfu"), row.get("tokens_per_second")
    if mfu is None:
        mfu = 100 * speed * flops / peak
    elif speed is not None:  # both are published: so is what was counted
        flops = mfu / 100 * peak / speed
    return Point(
        label=_label(row, layout),
        work=work,
        layout=layout,
        software=Software(**habits),
        machine=machine,
        flops_per_token=flops,
        peak_flops=peak,
        mfu=mfu,
        memory_gb=row.get("memory_gb"),
        kernel=kernel,
        first_stage=table.get("memory_of") == "first stage",
    )


def _label(row: Mapping[str, Any], layout: Layout) -> str:
    words = [
        row["model"],
        f"{layout.ranks} GPUs",
        f"{layout.seq_len}",
        f"{layout.accumulation}x{layout.micro_batch}",
    ]
    if layout.tensor * layout.pipeline > 1:
        words.append(f"tp{layout.tensor} pp{layout.pipeline}")
    words.append(f"z{layout.zero_stage}")
    words += [layout.checkpointing] if layout.checkpointing != "none" else []
    words += [key for key in ("compiled", "tensor_exposed", "offload") if row.get(key)]
    return " ".join(words).replace("tensor_exposed", "async-tp")
