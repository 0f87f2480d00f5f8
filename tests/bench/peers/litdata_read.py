"""litData's part of read_bench.py; runs in the environment that peers.sh builds.

usage: litdata_read.py IDS.bin DIRECTORY SEQ_LEN MICRO_BATCH ROWS ROWS_PER_STEP

Makes its own dataset of the ids, then reads ``ROWS`` rows for every line of standard input, which is
WORKERS SECONDS: so many worker processes read ahead, and so long the reader rests after each step. It
answers with a JSON line, in which the CPU seconds of workers count.
"""

import json
import multiprocessing
import os
import resource
import sys
import time

import numpy as np
import torch
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize

IDS, DIRECTORY = sys.argv[1:3]
SEQ_LEN, MICRO, ROWS, PER_STEP = map(int, sys.argv[3:7])
PART = 1 << 20


def part(start):
    ids_M = np.memmap(IDS, dtype="<u2", mode="r")
    yield torch.from_numpy(ids_M[start : start + PART].astype(np.int32))


def main():
    # It removes these folders whole, whoever's they are: chunks and data below TMPDIR, unless told so.
    os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = f"{DIRECTORY}.chunks"
    os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = f"{DIRECTORY}.data"
    size = np.memmap(IDS, dtype="<u2", mode="r").size
    optimize(
        fn=part,
        inputs=list(range(0, size, PART)),
        output_dir=DIRECTORY,
        chunk_size=(SEQ_LEN + 1) * 8192,
        item_loader=TokensLoader(),
        num_workers=1,
        verbose=False,
    )
    readers = {workers: rows_without_end(workers) for workers in (0, 1)}
    for line in sys.stdin:
        workers, seconds = line.split()
        started, rows = cpu_seconds(), 0
        while rows < ROWS:
            ids_BS = next(readers[int(workers)])
            ids_BS[:, :-1].long(), ids_BS[:, 1:].long()
            rows += MICRO
            if rows % PER_STEP == 0:
                time.sleep(float(seconds))
        print(json.dumps({"per_cpu_second": rows / (cpu_seconds() - started)}), flush=True)


def rows_without_end(workers):
    loader = StreamingDataLoader(
        StreamingDataset(DIRECTORY, item_loader=TokensLoader(block_size=SEQ_LEN + 1), shuffle=True),
        batch_size=MICRO,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def cpu_seconds():
    """Return those of this process and of its children, alive or ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    alive = [time.clock_gettime(~child.pid << 3 | 2) for child in multiprocessing.active_children()]
    return time.process_time() + ended.ru_utime + ended.ru_stime + sum(alive)


if __name__ == "__main__":
    main()
