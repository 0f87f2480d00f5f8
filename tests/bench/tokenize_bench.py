"""What encoding and writing costs, beside the bare loop of `tokenizers`, interleaved in one run.

Prints seconds and the ratio of speeds: the bare loop (encode a batch, take its ids, write nothing), ours
with the backend `tokenizers`, ours with gigatoken. Ours encodes, opens documents with EOT and writes
uint16. Every run starts with a new tokenizer, so none profits from the words another has seen. Batches are
those of a preparation. With ``--single`` each batch is one long document, which no library divides.

usage: tokenize_bench.py TOKENIZER JSONL... [--mb N] [--rounds N] [--single]

Each line of a JSONL file holds a document with a key text. Exit status 1: ids differ or a bar is missed.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tokenizers

from distllm.data.pipeline.encode import open_documents
from distllm.data.tokenizer import Tokenizer

BATCH_CHARS = 1 << 20
BARS = {"tokenizers": 0.95, "gigatoken": 10.0}


def batches(paths, size, *, single):
    """Return texts of the files, up to ``size`` characters together, in batches of a preparation."""
    found, batch, chars, total = [], [], 0, 0
    for path in paths:
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                if total >= size:
                    break
                batch.append(json.loads(line)["text"])
                chars += len(batch[-1])
                total += len(batch[-1])
                if chars >= BATCH_CHARS:
                    found.append(batch)
                    batch, chars = [], 0
    found += [batch] if batch else []
    return [["\n".join(each)] for each in found] if single else found


def bare(tokenizer, groups):
    """Encode with the library alone; return seconds and the number of ids."""
    inner = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    inner.encode_special_tokens = True
    begin, ids = time.perf_counter(), 0
    for group in groups:
        for encoding in inner.encode_batch_fast(group, add_special_tokens=False):
            ids += len(encoding.ids)
    return time.perf_counter() - begin, ids


def ours(tokenizer, groups, backend, out):
    """Encode, open documents and write; return seconds and the number of ids without EOT."""
    loaded = Tokenizer.load(tokenizer, backend=backend)
    assert loaded.backend == backend, f"{backend} is not what encodes"
    begin, ids = time.perf_counter(), 0
    with out.open("wb") as stream:
        for group in groups:
            ids_M, ends_D = loaded.encode_packed(group)
            opened_M, _ = open_documents(ids_M.astype(np.uint16), ends_D, loaded.eot_id)
            stream.write(opened_M.data)
            ids += ids_M.size
    assert loaded.backend == backend, "gigatoken was given up"
    return time.perf_counter() - begin, ids


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("jsonl", type=Path, nargs="+")
    parser.add_argument("--mb", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--single", action="store_true")
    arguments = parser.parse_args()
    groups = batches(arguments.jsonl, arguments.mb * 1e6, single=arguments.single)
    size = sum(len(text.encode()) for group in groups for text in group) / 1e6
    seconds = {"bare": [], **{backend: [] for backend in BARS}}
    counts, contents = set(), set()
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(arguments.rounds):
            found, count = bare(arguments.tokenizer, groups)
            seconds["bare"].append(found)
            counts.add(count)
            for backend in BARS:
                out = Path(directory) / backend
                found, count = ours(arguments.tokenizer, groups, backend, out)
                seconds[backend].append(found)
                counts.add(count)
                contents.add(out.read_bytes())
    print(f"{size:.1f} MB, {sum(map(len, groups))} documents, {len(groups)} batches, {min(counts)} ids")
    missed = len(counts) > 1 or len(contents) > 1
    for name, found in seconds.items():
        ratio = statistics.median(b / s for b, s in zip(seconds["bare"], found, strict=True))
        print(f"{name:10} {statistics.median(found):7.2f} s {size / statistics.median(found):7.1f} MB/s "
              f"{ratio:6.2f} x bare")  # fmt: skip
        missed |= name in BARS and ratio < BARS[name]
    print(f"equal bytes: {len(counts) == len(contents) == 1}; peak RSS "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")  # fmt: skip
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
