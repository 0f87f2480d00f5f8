"""How fast rows are read and how soon the first batch is there, against np.memmap and litData.

All contestants read the same ids as rows of ``--seq-len`` inputs in micro-batches of 8, in a permuted
order, and hand over int64 tensors of inputs and targets. distllm proves every block against its digest
and also gives positions and segments of the documents; the memory map gives neither, and takes its
order from the same permutation. Contestants alternate within one run, and CPU seconds are compared,
because the machine may be shared. Freed memory stays with each process, as it does in training on a CPU.

First everybody reads in the thread that takes the rows (litData with ``num_workers=0``), one row after
the other. Then as training has it: a step of 64 rows is followed by ``--step-ms`` in which the interpreter is
free, as it is while a step is computed, and the next rows are read meanwhile: by distllm in a thread, by
litData in a worker process (``num_workers=1``), whose CPU seconds count.

The first batch is timed from opening the dataset, at the beginning and at half of an epoch, after the
kernel was asked to drop the shards from its cache; importing Python modules is not part of it.

usage: read_bench.py [--dataset DIR] [--mb 64] [--rows 8192] [--rounds 5] [--seq-len 2048]
                     [--packing window] [--step-ms 2] [--peer-python VENV/bin/python]

Without a dataset one of ``--mb`` megabytes of random ids is written: reading does not look at them.
The bars: at least half of the memory map; at least litData, without and with reading ahead; reading
ahead at most a tenth dearer than without; and at 50 % of an epoch the first batch no later than 0.2 s after
the cold one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from prepared import write_dataset

from distllm.data.manifest import Manifest
from distllm.data.order import SampleOrder
from distllm.data.shards import index_of, map_shard
from distllm.data.stream import PackedSplit, StepStream
from distllm.dist.memory import keep_freed_memory

MICRO, PER_STEP, LOCATED = 8, 64, 1024
WANTED = (
    ("distllm", "memmap", 0.5),
    ("distllm", "litdata", 1.0),
    ("distllm ahead", "distllm step", 1 / 1.1),
    ("distllm ahead", "litdata ahead", 1.0),
)
WANTED_LATER = 0.2
KEEP_FREED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}  # for litData's process
PEER = Path(__file__).parent / "peers" / "litdata_read.py"


def write_random(directory, megabytes):
    """Write ids in documents of about 600, as one source of shards of 64 MiB."""
    random = np.random.default_rng(0)
    lengths = random.geometric(1 / 600, megabytes * 10**6 // 2 // 600)
    documents = [random.integers(1, 50_000, length) for length in lengths]
    write_dataset(directory, train=documents, shard_bytes=64 * 2**20)


def raw_ids(directory, scratch):
    """Write the ids of the training split as one plain file, and return it mapped."""
    manifest = Manifest.load(directory)
    dtype = np.dtype(manifest.token_dtype).newbyteorder("<")
    index = index_of(directory, manifest)
    path = Path(scratch) / "ids.bin"
    with path.open("wb") as file:
        for source in manifest.sources:
            for shard in index[source].get("train", ()):
                map_shard(directory, shard, dtype)[0].tofile(file)
    return path, np.memmap(path, dtype=dtype, mode="r")


def tensors(*arrays):
    return [torch.from_numpy(array_BT).long() for array_BT in arrays]


class SameThread(Executor):
    """Does what it is given at once."""

    def submit(self, work, *arguments):
        future = Future()
        future.set_result(work(*arguments))
        return future


def read_distllm(split, rows, reader=None, rest=0.0):
    order = SampleOrder.single(split.num_samples, 1)
    stream = StepStream(
        split, order, sequences_per_step=PER_STEP, micro_batch_size=MICRO, rank=0, world_size=1
    )
    stream._reader = reader or stream._reader
    for start in range(0, rows, PER_STEP):
        for batch in stream.step(start):
            tensors(batch.tokens_BT, batch.targets_BT)
        time.sleep(rest)
    stream.close()


def read_memmap(ids_M, rows, seq_len):
    samples = (ids_M.size - 1) // seq_len
    for start in range(0, rows, LOCATED):
        _, _, sample_N = SampleOrder.single(samples, 1).locate(np.arange(start, start + LOCATED))
        for row in range(0, LOCATED, MICRO):
            starts = (sample_N[row : row + MICRO] * seq_len).tolist()
            tensors(
                np.stack([ids_M[at : at + seq_len].astype(np.int64) for at in starts]),
                np.stack([ids_M[at + 1 : at + 1 + seq_len].astype(np.int64) for at in starts]),
            )


def per_cpu_second(read, rows):
    started = time.process_time()
    read()
    return rows / (time.process_time() - started)


def first_batch(directory, seq_len, packing, part):
    """Seconds from opening to the batch at ``part`` of an epoch, with cold shards."""
    for tar in directory.glob("*/*/*.tar"):
        descriptor = os.open(tar, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    started = time.perf_counter()
    split = PackedSplit(directory, "train", seq_len, packing=packing)
    order = SampleOrder.single(split.num_samples, 1)
    stream = StepStream(
        split, order, sequences_per_step=PER_STEP, micro_batch_size=MICRO, rank=0, world_size=1
    )
    stream.step(int(part * split.num_samples) // PER_STEP * PER_STEP)
    seconds = time.perf_counter() - started
    stream.close()
    return seconds


class Peer:
    """litData in an environment of its own, which reads ``rows`` rows for each line it is sent."""

    def __init__(self, python, ids, scratch, seq_len, rows):
        words = [python, PEER, ids, Path(scratch) / "litdata", seq_len, MICRO, rows, PER_STEP]
        self.process = subprocess.Popen(
            [str(word) for word in words],
            env=os.environ | KEEP_FREED,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(self, workers, rest):
        self.process.stdin.write(f"{workers} {rest}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)["per_cpu_second"]
        sys.exit("litData ended without a figure")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure(directory, scratch, options):
    rows, seq_len, rest = options.rows, options.seq_len, options.step_ms / 1000
    ids, ids_M = raw_ids(directory, scratch)
    split = PackedSplit(directory, "train", seq_len, packing=options.packing)
    print(f"{ids_M.nbytes / 1e6:.1f} MB of ids, {split.num_samples} rows, {split.padding:.2%} padding")
    contestants = {
        "distllm": lambda: per_cpu_second(lambda: read_distllm(split, rows, SameThread()), rows),
        "distllm step": lambda: per_cpu_second(lambda: read_distllm(split, rows, SameThread(), rest), rows),
        "distllm ahead": lambda: per_cpu_second(lambda: read_distllm(split, rows, None, rest), rows),
        "memmap": lambda: per_cpu_second(lambda: read_memmap(ids_M, rows, seq_len), rows),
    }
    peer = Peer(options.peer_python, ids, scratch, seq_len, rows) if options.peer_python else None
    if peer is not None:
        contestants["litdata"] = lambda: peer.read(0, 0.0)
        contestants["litdata ahead"] = lambda: peer.read(1, rest)
    for run in contestants.values():
        run()
    found = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, run in contestants.items():
            found[name].append(run())
    if peer is not None:
        peer.close()
    for name, values in found.items():
        rate = statistics.median(values)
        print(f"{name:<14} {rate:9.0f} rows/cpu-s, {rate * seq_len / 1e6:6.1f} Mtok/cpu-s")
    return {name: statistics.median(values) for name, values in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--mb", type=int, default=64)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--packing", default="window")
    parser.add_argument("--step-ms", type=float, default=2)
    parser.add_argument("--peer-python")
    options = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        directory = options.dataset or Path(scratch) / "dataset"
        if options.dataset is None:
            write_random(directory, options.mb)
        rates = measure(directory, scratch, options)
        times = {0.0: [], 0.5: []}
        for _ in range(options.rounds):
            for part, seconds in times.items():
                seconds.append(first_batch(directory, options.seq_len, options.packing, part))
    early, late = (statistics.median(seconds) for seconds in times.values())
    print(f"first batch: {early:.3f} s cold, {late:.3f} s at 50 % of an epoch")
    missed = late > early + WANTED_LATER
    for name, other, wanted in WANTED:
        if other in rates:
            ratio = rates[name] / rates[other]
            missed = missed or ratio < wanted
            print(
                f"{'ok  ' if ratio >= wanted else 'MISS'} {name} {ratio:.2f} x {other}, wanted {wanted:.2f}"
            )
    print(f"{'ok  ' if late <= early + WANTED_LATER else 'MISS'} {late - early:+.3f} s at 50 %")
    sys.exit(missed)


if __name__ == "__main__":
    main()
