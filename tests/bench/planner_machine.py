"""Predicted against measured speed and memory of real runs on this machine.

``python tests/bench/planner_machine.py DATASET [FRACTION [CASE...]] [--clock]`` measures the machine as
``distllm plan --calibrate`` does and trains each case (or those that are numbered) with one thread a
rank. Tokens/s count twice: by the clock, exchanges and waiting included, which means something on a
quiet machine only; and by the CPU seconds that the ranks took between two steps, which other programs
hardly change, against a prediction without exchanges, in which a CPU waits. The dataset is made of random
words by ``distllm prepare`` if it is not there. It ends with 1 where a case is off by more than FRACTION
in CPU seconds, with ``--clock`` also by the clock.
"""

import dataclasses
import json
import os
import random
import statistics
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny

from distllm.config.compose import compose
from distllm.config.resolve import resolve
from distllm.plan.calibration import machine_of_calibration, read_calibration
from distllm.plan.estimate import estimate
from distllm.plan.experiment import layout_of
from distllm.plan.work import work_of
from distllm.train.calibrate import calibrate

STEPS, WARM = 16, 4
RANKS = 2
CASES = {
    "hidden 192, 4 layers, ZeRO-0": ["engine=zero0", "model.hidden_size=192", "model.num_layers=4"],
    "hidden 192, 4 layers, ZeRO-3": ["engine=zero3", "model.hidden_size=192", "model.num_layers=4"],
    "hidden 192, 16 layers, ZeRO-1": ["engine=zero1", "model.hidden_size=192", "model.num_layers=16"],
    "hidden 256, 8 layers, ZeRO-1": ["engine=zero1", "model.hidden_size=256", "model.num_layers=8"],
    "hidden 384, 4 layers, ZeRO-2": ["engine=zero2", "model.hidden_size=384", "model.num_layers=4"],
    "hidden 512, 4 layers, ZeRO-3": ["engine=zero3", "model.hidden_size=512", "model.num_layers=4"],
    "hidden 384, 4 layers, full recomputation": [
        "engine=zero2", "model.hidden_size=384", "model.num_layers=4", "engine.activation_checkpointing=full",
    ],
}  # fmt: skip


def write_corpus(directory):
    """Documents of 200 to 600 of 20 000 words: enough for a vocabulary of 8192 and all steps of a case."""
    generator = random.Random(0)
    lexicon = [
        "".join(generator.choices(string.ascii_lowercase, k=generator.randint(3, 9))) for _ in range(20_000)
    ]
    directory.mkdir(parents=True)
    for number in range(400):
        text = " ".join(generator.choices(lexicon, k=generator.randint(200, 600)))
        (directory / f"{number:04d}.txt").write_text(text)


def words(root, dataset, case):
    return [
        "data=text", f"data.paths=[{dataset}.corpus]", f"data.out={dataset}", "data.seq_len=512",
        f"runs_dir={root}",
        f"name={list(CASES).index(case)}", "tokenizer.vocab_size=8192", "model.num_heads=8",
        "train.tokens_per_step=4096", f"train.max_steps={STEPS}", "engine.micro_batch_tokens=2048",
        "engine.bucket_bytes=16MiB", f"cluster.procs_per_node={RANKS}", "cluster.threads_per_rank=1",
        "eval=none", "checkpoint.every_steps=1000", *CASES[case],
    ]  # fmt: skip


def steps_of(path):
    """The step records that are written so far."""
    text = path.read_text() if path.exists() else ""
    records = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
    return [record for record in records if record["kind"] == "step"]


def cpu_seconds(process):
    """CPU seconds so far of a process and of all below it that still run."""
    parents, used = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        parents[int(stat.parent.name)] = int(fields[1])
        used[int(stat.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def below(one):
        while one in parents and one != process.pid:
            one = parents[one]
        return one == process.pid

    return sum(seconds for one, seconds in used.items() if below(one))


def measured(root, dataset, case):
    """Return tokens/s by the clock, tokens for each CPU second of every rank, and memory of rank 0."""
    path = root / str(list(CASES).index(case)) / "metrics.jsonl"
    command = tiny.command("train", *words(root, dataset, case))
    environment = tiny.environment(OMP_NUM_THREADS="1")
    seen = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        while process.poll() is None:
            if (done := len(steps_of(path))) not in seen:
                seen[done] = cpu_seconds(process)
            time.sleep(0.02)
    assert process.returncode == 0
    steps = steps_of(path)
    assert len(steps) == STEPS, steps
    first, last = min(step for step in seen if step >= WARM), max(step for step in seen if step < STEPS)
    own = (seen[last] - seen[first]) / RANKS
    clock = statistics.median(step["tokens_per_second"] for step in steps[WARM:])
    tokens = steps[-1]["tokens"] / STEPS
    return clock, tokens * (last - first) / own, max(step["memory_bytes"] for step in steps)


def predicted(root, dataset, case):
    run = resolve(compose(words(root, dataset, case)), starts_here=False)
    found = read_calibration(root)
    machine = machine_of_calibration(found, run)
    return estimate(
        work_of(run.shape),
        layout_of(run),
        run.config,
        machine,
        efficiency=found.efficiency,
    )


def main(dataset, fraction, cases, by_clock):
    root = Path(tempfile.mkdtemp(prefix="planner-machine-"))
    if not Path(dataset).exists():
        write_corpus(Path(f"{dataset}.corpus"))
        done = tiny.distllm("prepare", *words(root, dataset, cases[0]), timeout=1200)
        assert done.returncode == 0, done.stderr
    calibrate(1, RANKS, root)
    print(dataclasses.asdict(read_calibration(root)), f"load {os.getloadavg()[0]:.1f}", flush=True)
    print(
        "| Case | tokens/CPU s | predicted | error | tokens/s | predicted | error | MiB | predicted | error |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    worst = 0.0
    for case in cases:
        clock, own, memory = measured(root, dataset, case)
        plan = predicted(root, dataset, case)
        busy = plan.layout.tokens_per_step / (plan.time.total - plan.time.exposed)
        worst = max(worst, abs(busy / own - 1))
        if by_clock:
            worst = max(worst, abs(plan.tokens_per_second / clock - 1))
        size = plan.memory.device
        print(
            f"| {case} | {own:.0f} | {busy:.0f} | {busy / own - 1:+.1%} "
            f"| {clock:.0f} | {plan.tokens_per_second:.0f} | {plan.tokens_per_second / clock - 1:+.1%} "
            f"| {memory / 2**20:.0f} | {size / 2**20:.0f} | {size / memory - 1:+.1%} |",
            flush=True,
        )
    print(f"load {os.getloadavg()[0]:.1f}, {RANKS} of it these runs' own; worst error {worst:.1%}")
    return int(worst > fraction)


if __name__ == "__main__":
    words_given = [word for word in sys.argv[1:] if word != "--clock"]
    chosen = [list(CASES)[int(number)] for number in words_given[2:]] or list(CASES)
    allowed = float(words_given[1]) if len(words_given) > 1 else 0.15
    sys.exit(main(words_given[0], allowed, chosen, "--clock" in sys.argv))
