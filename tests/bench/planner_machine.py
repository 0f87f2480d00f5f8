"""Predicted against measured tokens/s and memory of real runs on this machine.

``python tests/bench/planner_machine.py DATASET [FRACTION]`` measures the machine as
``distllm plan --calibrate`` does, trains each case twice with a different number of steps, and takes
the difference, so that starting costs nothing. With one thread a rank, a step's time is compared in
CPU seconds of a rank, which other programs on the machine hardly change; exchanges, in which a CPU
waits, are left out of both sides. It ends with 1 where a case is off by more than FRACTION.
"""

import dataclasses
import json
import os
import resource
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny

from distllm.config.compose import compose
from distllm.config.resolve import resolve
from distllm.plan.calibration import machine_of_calibration, read_calibration
from distllm.plan.estimate import estimate
from distllm.plan.experiment import base_bytes, layout_of
from distllm.plan.work import work_of
from distllm.train.calibrate import calibrate

SHORT, LONG = 2, 8
RANKS = 2
CASES = {
    "hidden 192, 4 layers, ZeRO-0": ["engine=zero0", "model.hidden_size=192", "model.num_layers=4"],
    "hidden 256, 8 layers, ZeRO-1": ["engine=zero1", "model.hidden_size=256", "model.num_layers=8"],
    "hidden 384, 4 layers, ZeRO-2": ["engine=zero2", "model.hidden_size=384", "model.num_layers=4"],
    "hidden 512, 4 layers, ZeRO-3": ["engine=zero3", "model.hidden_size=512", "model.num_layers=4"],
    "hidden 384, 4 layers, full recomputation": [
        "engine=zero2", "model.hidden_size=384", "model.num_layers=4", "engine.activation_checkpointing=full",
    ],
}  # fmt: skip


def words(root, dataset, case, steps):
    return [
        "data=pydocs", f"data.out={dataset}", "data.seq_len=512", f"runs_dir={root}",
        f"name={list(CASES).index(case)}-{steps}", "tokenizer.vocab_size=8192", "model.num_heads=8",
        "train.tokens_per_step=4096", f"train.max_steps={steps}", "engine.micro_batch_tokens=2048",
        "engine.bucket_bytes=16MiB", f"cluster.procs_per_node={RANKS}", "cluster.threads_per_rank=1",
        "eval=none", "checkpoint.every_steps=1000", *CASES[case],
    ]  # fmt: skip


def children_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(root, dataset, case):
    """Return CPU seconds of one rank for one step, and the memory of rank 0."""
    seconds, memory = {}, 0
    for steps in (SHORT, LONG):
        start = children_seconds()
        done = tiny.distllm("train", *words(root, dataset, case, steps), timeout=1200, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        seconds[steps] = children_seconds() - start
        lines = (root / f"{list(CASES).index(case)}-{steps}" / "metrics.jsonl").read_text().splitlines()
        memory = max(json.loads(line).get("memory_bytes") or 0 for line in lines)
    return (seconds[LONG] - seconds[SHORT]) / (LONG - SHORT) / RANKS, memory


def predicted(root, dataset, case):
    run = resolve(compose(words(root, dataset, case, SHORT)), starts_here=False)
    found = read_calibration(root)
    machine = machine_of_calibration(found, run)
    return estimate(
        work_of(run.shape),
        layout_of(run),
        run.config,
        machine,
        base_bytes=base_bytes(run.config),
        efficiency=found.efficiency,
    )


def main(dataset, fraction):
    root = Path(tempfile.mkdtemp(prefix="planner-machine-"))
    calibrate(1, RANKS, root)
    print(dataclasses.asdict(read_calibration(root)), f"load {os.getloadavg()[0]:.1f}", flush=True)
    print("| Case | CPU s a step | predicted | error | memory MiB | predicted | error |")
    print("|---|---|---|---|---|---|---|")
    worst = 0.0
    for case in CASES:
        seconds, memory = measured(root, dataset, case)
        plan = predicted(root, dataset, case)
        busy = plan.time.total - plan.time.exposed
        errors = busy / seconds - 1, plan.memory.device / memory - 1
        worst = max(worst, *map(abs, errors))
        print(
            f"| {case} | {seconds:.3f} | {busy:.3f} | {errors[0]:+.1%} "
            f"| {memory / 2**20:.0f} | {plan.memory.device / 2**20:.0f} | {errors[1]:+.1%} |",
            flush=True,
        )
    return int(worst > fraction)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 0.15))
