"""What a preparation holds does not grow with the corpus: a stage holds one part of its work at a time."""

import json
import multiprocessing
import random
import tracemalloc
from concurrent.futures import ProcessPoolExecutor

import pytest

from distllm.config.schema import Config, DataConfig
from distllm.config.schema_dedup import DedupConfig
from distllm.config.schema_privacy import PrivacyConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.dedup import signing
from distllm.data.pipeline import prepare, sources, spool
from distllm.machine import held_memory, release_memory

PART = 1 << 17
STAGES = ("read", "clean", "sign", "duplicates", "refine", "tokenizer", "encode", "shards")


def write_corpus(directory, parts):
    """Write files of documents of about 2 kB, of 2000 words; each file is work for one task."""
    directory.mkdir()
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(2000)]
    for part in range(parts):
        with (directory / f"{part}.jsonl").open("w", encoding="utf-8") as stream:
            while stream.tell() < PART:
                text = "\n".join(" ".join(draw.choices(words, k=12)) + "." for _ in range(30))
                stream.write(json.dumps({"text": text}) + "\n")


def peaks(directory, parts):
    """Prepare a corpus and return the most that Python and numpy held in each stage, in bytes.

    Runs in a process of its own: what other tests left behind is not a preparation's.
    """
    sources._UNIT_BYTES, spool._BATCH_CHARS, signing._BATCH_WORDS = PART, PART >> 3, PART >> 5
    found = dict.fromkeys(STAGES, 0)

    def note(progress):
        found[progress.stage] = max(found[progress.stage], tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()

    for count in (1, parts):  # the first allocates what is allocated once in a process
        corpus = directory / f"{parts}-{count}"
        write_corpus(corpus, count)
        data = DataConfig(
            source="jsonl",
            paths=(str(corpus),),
            out=f"{corpus}.out",
            shard_bytes=PART >> 1,
        )
        config = Config(
            data=data,
            dedup=DedupConfig(near=True),
            privacy=PrivacyConfig(scrub=("email", "phone", "api_key")),
            tokenizer=TokenizerConfig(vocab_size=300),
        )
        found = dict.fromkeys(STAGES, 0)
        tracemalloc.start()
        manifest = prepare(config, note)
        found["finish"] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    shards = sum(len(split.shards) for splits in manifest.sources.values() for split in splits.values())
    return shards, found


@pytest.mark.slow
def test_no_stage_holds_more_of_a_larger_corpus(tmp_path):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        (shards, some), (more_shards, all_) = process.map(peaks, [tmp_path] * 2, [2, 10])
    assert more_shards > shards + 6
    grown = {stage: all_[stage] - some[stage] for stage in all_}
    # The counts of each part are held, and where its shards lie; of its text and ids nothing.
    assert max(grown.values()) < 4 * PART, (grown, some)


def test_memory_that_was_freed_between_blocks_in_use_is_given_back():
    before = held_memory()
    blocks = [bytearray(4000) for _ in range(20_000)]
    kept = blocks[::100]
    assert held_memory() > before + 60 * 10**6
    del blocks
    release_memory()
    assert held_memory() < before + 30 * 10**6
    assert len(kept) == 200
