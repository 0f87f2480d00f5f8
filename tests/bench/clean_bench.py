"""What cleaning costs, beside datatrove's filters on the same documents, with their decisions compared.

Prints MB (10**6 bytes of UTF-8 text) a CPU second of the whole `web` profile and of its rules alone. With
``--peer-python``, the Python of an environment that has datatrove (tests/bench/peers.sh makes one), the
same rules run there on the first ``--peer-mb``, and the ratio is printed. Each side warms up on other
documents first, so neither pays for imports and first look-ups. Both must keep the same documents.

usage: clean_bench.py JSONL... [--mb N] [--peer-python PYTHON] [--peer-mb N]

Each line of a JSONL file holds a document with a key text. Exit status 1: decisions or bars are missed.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.texts import texts_in_turn

MB = 10**6
WARM_UP_DOCUMENTS = 20
WANTED_MB = 5.0
WANTED_RATIO = 20.0


def documents(paths, size):
    """Return texts of the files in turn, up to ``size`` bytes together."""
    found, total = [], 0
    for text in texts_in_turn(paths):
        if total >= size:
            break
        found.append(text)
        total += len(text.encode())
    return found


def timed(keeps, texts):
    """Return CPU seconds, bytes, and the numbers of the texts that are kept."""
    warm, texts = texts[:WARM_UP_DOCUMENTS], texts[WARM_UP_DOCUMENTS:]
    for text in warm:
        keeps(text)
    begin = time.process_time()
    kept = [number for number, text in enumerate(texts) if keeps(text)]
    return {
        "cpu": time.process_time() - begin,
        "bytes": sum(len(text.encode()) for text in texts),
        "documents": len(texts),
        "kept": kept,
    }


def peer_keeps():
    """Return datatrove's chain, in the order of FineWeb."""
    from datatrove.data import Document
    from datatrove.pipeline import filters

    chain = [
        filters.GopherRepetitionFilter(),
        filters.GopherQualityFilter(),
        filters.C4QualityFilter(filter_no_terminal_punct=False),
        filters.FineWebQualityFilter(),
    ]

    def keeps(text):
        document = Document(text=text, id="x")
        return all(judge.filter(document) is True for judge in chain)

    return keeps


def our_keeps(*, whole):
    """Return the web profile, or only its rules: what datatrove's chain does."""
    from distllm.config.schema_clean import CleanConfig
    from distllm.data.clean import Cleaner, load_profile
    from distllm.data.records import Document

    web = load_profile("web")
    rules = CleanConfig(
        min_chars=0, gopher=web.gopher, repetition=web.repetition, c4=web.c4, fineweb=web.fineweb
    )
    cleaner = Cleaner(web if whole else rules)
    language = "" if whole else "en"
    return lambda text: isinstance(cleaner(Document.from_text("x", text, language))[0], Document)


def report(name, result):
    """Print one measurement and return its MB a CPU second."""
    speed = result["bytes"] / MB / result["cpu"]
    print(
        f"{name:24} {speed:8.2f} MB/cpu-s  {result['cpu']:7.2f} s  {result['bytes'] / MB:7.1f} MB  "
        f"kept {len(result['kept'])} of {result['documents']}"
    )
    return speed


def main():
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--mb", type=float, default=20)
    parser.add_argument("--peer-mb", type=float, default=2)
    parser.add_argument("--peer-python")
    parser.add_argument("--as-peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_peer:
        json.dump(timed(peer_keeps(), documents(options.paths, options.peer_mb * MB)), sys.stdout)
        return 0
    speed = report(
        "web, whole profile", timed(our_keeps(whole=True), documents(options.paths, options.mb * MB))
    )
    missed = speed < WANTED_MB
    if options.peer_python:
        ours = timed(our_keeps(whole=False), documents(options.paths, options.peer_mb * MB))
        command = [
            options.peer_python,
            __file__,
            "--as-peer",
            "--peer-mb",
            str(options.peer_mb),
            *options.paths,
        ]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        theirs = json.loads(answer.splitlines()[-1])
        ratio = report("web, rules", ours) / report("datatrove, same rules", theirs)
        different = set(ours["kept"]) ^ set(theirs["kept"])
        print(f"ratio {ratio:.1f}; documents decided differently: {len(different)}")
        missed = missed or ratio < WANTED_RATIO or bool(different)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
