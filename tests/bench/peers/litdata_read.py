"""litData's part of read_bench.py; runs in the environment that peers.sh builds.

usage: litdata_read.py IDS.bin DIRECTORY SEQ_LEN MICRO_BATCH ROWS

Makes its own dataset of the ids, then reads ``ROWS`` rows for every line of standard input and answers
with a JSON line.
"""

import json
import os
import sys
import time

import numpy as np
import torch
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize

IDS, DIRECTORY = sys.argv[1:3]
SEQ_LEN, MICRO, ROWS = map(int, sys.argv[3:6])
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
    loader = StreamingDataLoader(
        StreamingDataset(DIRECTORY, item_loader=TokensLoader(block_size=SEQ_LEN + 1), shuffle=True),
        batch_size=MICRO,
        num_workers=0,
    )
    batches = iter(loader)
    for _ in sys.stdin:
        started, rows = time.process_time(), 0
        while rows < ROWS:
            ids_BS = next(batches, None)
            if ids_BS is None:
                batches = iter(loader)
                continue
            ids_BS[:, :-1].long(), ids_BS[:, 1:].long()
            rows += MICRO
        print(json.dumps({"per_cpu_second": rows / (time.process_time() - started)}), flush=True)


if __name__ == "__main__":
    main()
