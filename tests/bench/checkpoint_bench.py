"""How long a save keeps the training waiting: written meanwhile, beside written on the spot.

A model of 10 million parameters under the plain engine takes steps, and checkpoints are saved in one way
and in the other in turn. What is compared is the median time that the loop was kept by a save, and, in the
background, how much longer the steps took beside which it was written.

usage: checkpoint_bench.py [DIRECTORY] [SAVES]
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from distllm.checkpoint.format import newest_verified
from distllm.checkpoint.retention import Retention
from distllm.checkpoint.save import Saver
from distllm.config.engine import deepspeed_json
from distllm.dist.build import build_engine
from distllm.dist.topology import Topology

WIDTH, VOCAB, STEPS_BETWEEN = 512, 8192, 2


def make_model():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(WIDTH, WIDTH) for _ in range(8)]
    return torch.nn.Sequential(torch.nn.Embedding(VOCAB, WIDTH), *layers, torch.nn.Linear(WIDTH, VOCAB))


def make_engine(topology):
    settings = deepspeed_json(
        zero_stage=0, micro_batch_size=1, grad_accum_steps=1, world_size=1, grad_clip=1.0,
        compute="fp32", bucket_bytes=2**24, device="cpu",
    )  # fmt: skip
    return build_engine(
        "local", make_model(), lambda model: torch.optim.AdamW(model.parameters(), fused=True),
        settings=settings, topology=topology, timeout_seconds=60,
    )  # fmt: skip


def step(engine, tokens_BT):
    began = time.perf_counter()
    logits = engine.model(tokens_BT[:, :-1])
    engine.backward(cross_entropy(logits.flatten(0, 1), tokens_BT[:, 1:].flatten()))
    engine.step(1e-4)
    return time.perf_counter() - began


def measure(directory, saves):
    """Return per way the seconds that each save kept the loop, and the seconds of each step after it."""
    topology = Topology.single()
    torch.set_num_threads(1)
    engine = make_engine(topology)
    tokens_BT = torch.randint(0, VOCAB, (8, 33))
    savers = {way: Saver(directory / way, topology, Retention(1), background=way == "background")
              for way in ("blocking", "background")}  # fmt: skip
    kept, steps = {way: [] for way in savers}, {way: [] for way in savers}
    quiet = [step(engine, tokens_BT) for _ in range(4)][1:]
    for number in range(1, saves + 1):
        for way, saver in savers.items():
            began = time.perf_counter()
            saver.save(number, engine, {"step": number}, {})
            if way == "blocking":
                saver.settle()
            kept[way].append(time.perf_counter() - began)
            while saver.pending and not saver.done:
                steps[way].append(step(engine, tokens_BT))
            saver.settle()
            quiet += [step(engine, tokens_BT) for _ in range(STEPS_BETWEEN)]
    size = newest_verified(directory / "background")[0].bytes
    return kept, steps["background"], quiet, size


def main(directory, saves):
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        kept, beside, quiet, size = measure(Path(scratch), saves)
    medians = {way: statistics.median(seconds) for way, seconds in kept.items()}
    print(f"checkpoint of {size / 2**20:.0f} MiB in {directory or tempfile.gettempdir()}, {saves} each way")
    for way, seconds in kept.items():
        spread = f"{min(seconds) * 1e3:.0f} to {max(seconds) * 1e3:.0f}"
        print(f"  {way:<11}the loop is kept {medians[way] * 1e3:.0f} ms (median; {spread})")
    print(f"  ratio of the medians, background / blocking: {medians['background'] / medians['blocking']:.3f}")
    print(
        f"  a step takes {statistics.median(quiet) * 1e3:.0f} ms alone and "
        f"{statistics.median(beside) * 1e3:.0f} ms beside a write (medians of {len(quiet)} and {len(beside)})"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None, int(sys.argv[2]) if len(sys.argv) > 2 else 8)
