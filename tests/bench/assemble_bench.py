"""What a save under ZeRO costs before anything is written: each tensor on one rank, beside on every rank.

Ranks of this machine hold a model of 10 million parameters in parts. Its weights and moments are assembled
as a save does it, each on the rank that writes it, and as a save would do it if every rank assembled all.

usage: PYTHONPATH=tests assemble_bench.py [RANKS] [TIMES]
"""

import statistics
import sys
import time

from ranks import run_ranks

WIDTH, VOCAB = 512, 8192


def job(topology, stage, times):
    """Return the seconds of both ways in turn, and the bytes that this rank keeps."""
    import torch
    from engine_jobs import make_engine

    from distllm.checkpoint.save import Shares
    from distllm.dist.collectives import barrier

    torch.manual_seed(0)
    layers = [torch.nn.Linear(WIDTH, WIDTH) for _ in range(8)]
    model = torch.nn.Sequential(torch.nn.Embedding(VOCAB, WIDTH), *layers, torch.nn.Linear(WIDTH, VOCAB))
    engine = make_engine(topology, "deepspeed", stage, "fp32", model=model)
    seconds, kept = {"its writer": [], "every rank": []}, 0
    for _ in range(times):
        for way, owner in (("its writer", Shares(topology.world_size)), ("every rank", None)):
            barrier(topology)
            began = time.perf_counter()
            held = [tensor for _, tensor in engine.state(owner)]
            barrier(topology)
            seconds[way].append(time.perf_counter() - began)
            kept = kept if owner is None else sum(tensor.nbytes for tensor in held)
    return seconds, kept


def main(ranks, times):
    for stage in (1, 2, 3):
        (seconds, kept), *_ = run_ranks(job, ranks, stage, times, timeout=300)
        print(f"ZeRO-{stage} on {ranks} ranks, {times} times in turn; rank 0 writes {kept / 2**20:.0f} MiB")
        for way, taken in seconds.items():
            spread = f"{min(taken) * 1e3:.0f} to {max(taken) * 1e3:.0f}"
            print(f"  on {way:<11}{statistics.median(taken) * 1e3:.0f} ms (median; {spread})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4, int(sys.argv[2]) if len(sys.argv) > 2 else 5)
