"""`make bench`: the speed of `distllm train` beside its peers, interleaved in one run.

All contestants train the same 10 M-parameter Llama on the same samples in the same order, with the
same batch, precision, optimizer and number of threads. Each round runs every contestant once, in
turn, in a fresh process; the first steps of a process (compilation, warm-up) are not counted. What
is compared is the median over all counted steps, because other work on a machine only ever slows.

usage: train_bench.py [ROUNDS] [STEPS]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from distllm.config.compose import compose
from distllm.config.shape import settle_shape
from distllm.data.order import SampleOrder
from distllm.data.stream import PackedSplit, StepStream
from distllm.ops.peak import measure_matmul_flops
from distllm.plan.flops import flops_per_token

HERE = Path(__file__).parent
WARM_UP_STEPS = 5
CONTESTANTS = ("distllm", "trainer", "plain")
TITLES = {
    "distllm": "distllm train, ZeRO-2, compiled",
    "trainer": "Hugging Face Trainer, ZeRO-2",
    "plain": "plain PyTorch, every trick",
}
WANTED = {"trainer": 1.10, "plain": 0.95}


def main(rounds: int, steps: int) -> None:
    config = compose(["experiment=bench", f"train.max_steps={steps}"])
    distllm("prepare", "experiment=bench")
    shape = settle_shape(config.model, config.tokenizer.vocab_size, config.data.seq_len)
    per_token = flops_per_token(shape, config.data.seq_len)
    torch.set_num_threads(2)
    peaks, seconds, overheads = [], {name: [] for name in CONTESTANTS}, []
    with tempfile.TemporaryDirectory() as scratch:
        samples = Path(scratch) / "samples.npy"
        np.save(samples, rows(config, steps))
        for number in range(rounds):
            peaks.append(measure_matmul_flops(torch.device("cpu"), torch.float32, seconds=1.0))
            for name in CONTESTANTS:
                taken, overhead = RUN[name](samples, steps, Path(scratch) / f"{number}", config)
                seconds[name] += taken[WARM_UP_STEPS:]
                overheads += overhead[WARM_UP_STEPS:]
                print(
                    f"round {number + 1}, {name}: median {statistics.median(taken[WARM_UP_STEPS:]):.3f} s",
                    flush=True,
                )
    report(seconds, overheads, max(peaks), per_token * config.train.tokens_per_step, config)


def rows(config, steps):
    """Return the samples of every step, in the order in which distllm takes them."""
    split = PackedSplit(Path(config.data.out), "train", config.data.seq_len)
    sequences = config.train.tokens_per_step // config.data.seq_len
    stream = StepStream(
        split,
        SampleOrder.single(split.num_samples, config.seed),
        sequences_per_step=sequences,
        micro_batch_size=sequences,
        rank=0,
        world_size=1,
    )
    batches = [stream.step(step * sequences)[0] for step in range(steps)]
    stream.close()
    ids = [np.concatenate([batch.tokens_BT, batch.targets_BT[:, -1:]], axis=1) for batch in batches]
    return np.concatenate(ids).astype(np.uint16)


def distllm(*words):
    subprocess.run([sys.executable, "-m", "distllm.cli", *words], check=True, stdout=subprocess.DEVNULL)


def run_distllm(_samples, steps, scratch, config):
    distllm("train", "experiment=bench", f"train.max_steps={steps}", f"runs_dir={scratch}")
    lines = map(json.loads, (scratch / "bench" / "metrics.jsonl").read_text().splitlines())
    records = [line for line in lines if line["kind"] == "step"]
    seconds = [config.train.tokens_per_step / record["tokens_per_second"] for record in records]
    return seconds, [record["overhead_fraction"] + record["data_wait_fraction"] for record in records]


def run_script(script):
    def run(samples, steps, _scratch, config):
        rows_per_micro_batch = config.engine.micro_batch_tokens // config.data.seq_len
        done = subprocess.run(
            [sys.executable, str(HERE / script), str(samples), str(steps), str(rows_per_micro_batch), "2"],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "2"},
        )
        return json.loads(done.stdout.splitlines()[-1])["seconds"], []

    return run


RUN = {"distllm": run_distllm, "trainer": run_script("hf_trainer.py"), "plain": run_script("plain_loop.py")}


def report(seconds, overheads, peak, flops_per_step, config):
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    print(f"\nsgemm peak of this machine with 2 threads: {peak / 1e9:.0f} GFLOP/s")
    print(f"{'':<34}{'s/step':>9}{'tokens/s':>11}{'of peak':>9}{'distllm is':>12}{'wanted':>9}")
    for name in CONTESTANTS:
        ratio = medians[name] / medians["distllm"]
        wanted = f"{WANTED[name]:.2f}x" if name in WANTED else ""
        print(
            f"{TITLES[name]:<34}{medians[name]:>9.3f}{config.train.tokens_per_step / medians[name]:>11.0f}"
            f"{flops_per_step / medians[name] / peak:>9.1%}{ratio:>11.2f}x{wanted:>9}"
        )
    overhead = statistics.median(overheads)
    print(f"loop overhead outside forward, backward and optimizer: {overhead:.2%} (wanted <= 1%)")
    steps = len(seconds["distllm"])
    print(f"medians over {steps} steps each; conf/experiment/bench.yaml")


if __name__ == "__main__":
    main(*(int(word) for word in (sys.argv[1:] + ["3", "20"][len(sys.argv) - 1 :])))
