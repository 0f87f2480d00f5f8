"""What finding near duplicates costs, beside datatrove's MinHash stages on the same documents.

Both use word 5-grams, 14 bands of 8 and 64-bit hashes, in one process, with files between the stages. To
every twentieth document a copy is planted from which 2 % of the words are missing; a copy counts as found
when one of the two goes. Prints MB (10**6 bytes of UTF-8 text) a CPU second, with signing and deciding
apart; the ratio; how many planted copies each finds; and how many documents stay. datatrove splits words
with spaCy's rules and takes whole clusters, ours compares each document with the one that stays, so the
lists are not equal; ours must find as many copies, up to the noise of two draws of permutations.

usage: dedup_bench.py JSONL... --peer-python PYTHON [--mb N]

PYTHON is that of an environment with datatrove (tests/bench/peers.sh makes one). Each line of a JSONL file
holds a document with a key text. Exit status 1: fewer copies found, or the bar missed.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.texts import texts_in_turn

MB = 10**6
WANTED_RATIO = 20.0
EVERY, SHARE = 20, 0.02
NOISE = 0.02
"""Recall differs by so much between seeds: two standard deviations at a recall of 0.95 and 500 copies."""
MIN_WORDS = 50


def corpus(paths, size):
    """Return ``(id, text)`` up to ``size`` bytes, the planted copies after the documents they are of."""
    draw = random.Random(0)
    found, total = [], 0
    for text in texts_in_turn(paths):
        if total >= size:
            break
        words = text.split(" ")
        if len(words) < MIN_WORDS:
            continue
        total += len(text.encode())
        found.append((f"d{len(found)}", text))
        if len(found) % EVERY == 1:
            copy = " ".join(word for word in words if draw.random() >= SHARE)
            total += len(copy.encode())
            found.append((f"copy-of-{found[-1][0]}", copy))
    return found


def peer(paths, size, scratch):
    """Sign and decide with datatrove; return CPU seconds of both and the ids that go."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    def documents():
        return (Document(text=text, id=name) for name, text in texts)

    texts = corpus(paths, size)
    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    warm = MinhashDedupSignature(f"{scratch}/warm", config=config)
    warm.run(iter([Document(text=texts[0][1], id="w")]), 0, 1)
    begin = time.process_time()
    MinhashDedupSignature(f"{scratch}/sig", config=config).run(documents(), 0, 1)
    signed = time.process_time()
    for bucket in range(config.num_buckets):
        MinhashDedupBuckets(f"{scratch}/sig", f"{scratch}/buckets", config=config).run(
            None, bucket, config.num_buckets
        )
    MinhashDedupCluster(f"{scratch}/buckets", f"{scratch}/remove", config=config).run(None, 0, 1)
    stays = {document.id for document in MinhashDedupFilter(f"{scratch}/remove").run(documents(), 0, 1)}
    decided = time.process_time()
    gone = sorted({name for name, _ in texts} - stays)
    return {"sign": signed - begin, "decide": decided - signed, "gone": gone}


def ours(paths, size, scratch):
    """Sign and decide with distllm; return the same."""
    from distllm.config.schema_dedup import DedupConfig
    from distllm.data.dedup import Unit, decide, sign
    from distllm.data.records import Document

    config = DedupConfig(documents=False, near=True)
    texts = corpus(paths, size)
    documents = [Document.from_text(name, text) for name, text in texts]
    for name in ("warm", "unit"):
        (Path(scratch) / name).mkdir()
    sign([documents[:1]], Path(scratch) / "warm", config)
    begin = time.process_time()
    unit = Unit(sign([documents], Path(scratch) / "unit", config), "s")
    signed = time.process_time()
    (decision,) = decide([unit], config)
    gone = sorted(documents[row].id for row in decision.documents)
    return {"sign": signed - begin, "decide": time.process_time() - signed, "gone": gone}


def report(name, result, texts):
    """Print one side; return its MB a CPU second, the copies it found and what else it lost."""
    size = sum(len(text.encode()) for _, text in texts)
    gone = set(result["gone"])
    copies = [name for name, _ in texts if name.startswith("copy-of-")]
    found = sum(name in gone or name.removeprefix("copy-of-") in gone for name in copies)
    speed = size / MB / (result["sign"] + result["decide"])
    print(
        f"{name:10} {speed:7.2f} MB/cpu-s  sign {result['sign']:7.2f} s  decide {result['decide']:6.2f} s  "
        f"copies found {found} of {len(copies)}  stay {len(texts) - len(gone)} of {len(texts)}"
    )
    return speed, found


def main():
    """Measure both, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--mb", type=float, default=10)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--as-peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = int(options.mb * MB)
    if options.as_peer:
        json.dump(peer(options.paths, size, options.as_peer), sys.stdout)
        return 0
    texts = corpus(options.paths, size)
    with tempfile.TemporaryDirectory() as scratch:
        mine = ours(options.paths, size, scratch)
        command = [options.peer_python, __file__, "--peer-python", "", "--mb", str(options.mb)]
        command += ["--as-peer", scratch, *options.paths]
        answer = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    theirs = json.loads(answer.stdout.splitlines()[-1])
    print(f"{sum(len(text.encode()) for _, text in texts) / MB:.1f} MB in {len(texts)} documents")
    speed, found = report("distllm", mine, texts)
    their_speed, their_found = report("datatrove", theirs, texts)
    ratio = speed / their_speed
    different = len(set(mine["gone"]) ^ set(theirs["gone"]))
    print(f"ratio {ratio:.1f}, wanted {WANTED_RATIO}; documents decided differently: {different}")
    copies = sum(name.startswith("copy-of-") for name, _ in texts)
    return int(ratio < WANTED_RATIO or found < their_found - NOISE * copies)


if __name__ == "__main__":
    sys.exit(main())
