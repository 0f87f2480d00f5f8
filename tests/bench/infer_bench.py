"""The speed of what comes after training, beside `transformers` and plain loops, interleaved in one run.

Generation (one text, eight, eight of unlike length, served, beams of a T5), vectors of texts, search, and
perplexity: ours and a peer compute the same from one exported folder with random weights, in fp32 with
the same number of threads. Each round runs both, in turn; what is compared are medians: of CPU seconds with
one thread, which other work on the machine lengthens little, and of seconds with more.

usage: infer_bench.py [--rounds N] [--threads N] [CONTEST...]

Exit status 1: results differ or a bar is missed.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from distllm.config.schema import ModelConfig
from distllm.config.shape import settle_shape
from distllm.data.stream import PackedSplit
from distllm.data.tokenizer import Tokenizer
from distllm.dist.topology import Topology
from distllm.evaluate.perplexity import evaluate_perplexity
from distllm.evaluate.retrieval import VectorIndex
from distllm.export.hf import export_hf
from distllm.export.load import load_model
from distllm.infer.beam import Search
from distllm.infer.generate import generate_rows
from distllm.models.init import build_model
from distllm.search.build import batches_of
from distllm.search.encoder import encoder_of_folder
from distllm.serve.sampling import Sampling
from distllm.serve.scheduler import Request, Scheduler
from distllm.tasks.causal_lm import CausalLM

VOCAB, CONTEXT, PROMPT, NEW = 32_000, 512, 128, 128
BEAMS, SOURCE, TARGET = 4, 64, 64
TEXTS, PASSAGES, WIDTH, QUERIES, FOUND = 256, 1_000_000, 256, 20, 100
ROWS = 16
LLAMA = ModelConfig(hidden_size=512, num_layers=12, num_heads=8, num_kv_heads=4)
T5 = ModelConfig(
    family="encoder_decoder", hidden_size=512, num_layers=6, num_heads=8, head_dim=64, intermediate_size=2048,
    positions="relative", activation="relu", gated=False, norm_eps=1e-6, attention_scale=1.0,
    logit_scale=512**-0.5, init_std=0.05,
)  # fmt: skip
BERT = ModelConfig(
    family="encoder", hidden_size=384, num_layers=6, num_heads=12, intermediate_size=1536,
    positions="learned", norm="layer", norm_place="post", norm_bias=True, attention_bias=True,
    attention_out_bias=True, mlp_bias=True, gated=False, activation="gelu", embed_norm=True, token_types=2,
)  # fmt: skip

Found = tuple[dict[str, float], Any]
"""Seconds of each part of the work, and its result."""


@dataclass(frozen=True)
class Contest:
    """Two ways to one result.

    Attributes:
        title: what is done.
        amounts: for each part that is timed how much of ``unit`` it makes.
        unit: what is counted.
        wanted: how many times as fast as the peer ours must be.
        ours: ours.
        theirs: the peer's.
        apart: how far two results are from each other; more than ``tolerance`` fails.
    """

    title: str
    amounts: dict[str, int]
    unit: str
    wanted: float
    ours: Callable[[], Found]
    theirs: Callable[[], Found]
    apart: Callable[[Any, Any], float]
    tolerance: float = 0.0


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("contests", nargs="*", help=f"of {', '.join(CONTESTS)}; all of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(f"{'':<44}{'ours':>10}{'peer':>10}  {'':<12}{'ratio':>6}{'wanted':>8}")
    missed = False
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.contests or CONTESTS:
            torch.set_num_threads(arguments.threads)
            missed |= run(CONTESTS[name](Path(scratch)), arguments.rounds)
    return int(missed)


def run(contest, rounds):
    """Run a contest, print a line for each part, and return whether its bar is missed."""
    taken = {"ours": [], "theirs": []}
    with torch.no_grad():
        apart = contest.apart(contest.ours()[1], contest.theirs()[1])  # warm
        for _ in range(rounds):
            for side, work in (("ours", contest.ours), ("theirs", contest.theirs)):
                taken[side].append(work()[0])
    missed = not apart <= contest.tolerance
    for part, amount in contest.amounts.items():
        ours, theirs = (statistics.median(found[part] for found in taken[side]) for side in taken)
        missed |= theirs / ours < contest.wanted
        print(f"{f'{contest.title}: {part}':<44}{amount / ours:>10.1f}{amount / theirs:>10.1f}  "
              f"{contest.unit:<12}{theirs / ours:>5.2f}x{contest.wanted:>7.2f}x", flush=True)  # fmt: skip
    if not apart <= contest.tolerance:
        print(f"{contest.title}: results differ by {apart:.1e}, more than {contest.tolerance:.0e}")
    return missed


def timed(work):
    """Return the seconds of a call, and what it returned."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    result = work()
    return clock() - begin, result


def generating(write):
    """Return the work of writing one token, which reads the prompts, and of writing all."""

    def work():
        first, _ = timed(lambda: write(1))
        whole, texts = timed(lambda: write(NEW))
        return {"prompts": first, "new tokens": whole - first}, texts

    return work


def differing(ours, theirs):
    """Return the share of texts that differ."""
    return sum(a != b for a, b in zip(ours, theirs, strict=True)) / len(theirs)


def prompts_of(lengths):
    """Return random ids, a row of each length."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(10, VOCAB, (length,), generator=generator).tolist() for length in lengths]


@cache
def dataset(scratch):
    """Prepare texts of made-up words, some much more frequent than others; return the directory."""
    from distllm.cli import main as distllm

    generator = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = ["".join(generator.choice(letters, generator.integers(2, 10))) for _ in range(20_000)]
    (scratch / "corpus").mkdir()
    for number in range(40):
        places = np.minimum(generator.zipf(1.3, 4000), len(words)) - 1
        (scratch / "corpus" / f"{number}.txt").write_text(" ".join(words[place] for place in places))
    words_of_command = (
        "data=text", f"data.paths=[{scratch}/corpus]", f"data.out={scratch}/data", "data.valid_fraction=0.2",
        f"data.seq_len={CONTEXT}", "tokenizer.vocab_size=8192",
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert distllm(["prepare", *words_of_command]) == 0
    return scratch / "data"


@cache
def exported(scratch, name):
    """Export a model with random weights; return ours, loaded from the folder, and the folder."""
    config, head = {"llama": (LLAMA, "masked_lm"), "t5": (T5, "masked_lm"), "bert": (BERT, "embedding")}[name]
    shape, folder = settle_shape(config, VOCAB, CONTEXT), scratch / name
    built = build_model(shape, seed=1, head=head)
    export_hf(built.state_dict(), shape, Tokenizer.load(dataset(scratch)), folder, {}, head=head)
    return load_model(folder, head=head).eval(), folder


@cache
def peer(folder, kind):
    """Load a folder with `transformers`; its texts never end."""
    model = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()
    if model.can_generate():
        model.generation_config.update(eos_token_id=None, pad_token_id=0, suppress_tokens=None)
    return model


def llama(scratch, lengths, served=False):
    """Greedy continuation of prompts."""
    model, folder = exported(scratch, "llama")
    theirs, prompts = peer(folder, "AutoModelForCausalLM"), prompts_of(lengths)
    longest = max(lengths)
    rows = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - length) + [1] * length for length in lengths])

    def write(count):
        return generate_rows(model, prompts, vocab_size=VOCAB, eot_id=-1, max_tokens=count)

    def write_theirs(count):
        ids = theirs.generate(rows, attention_mask=mask, max_new_tokens=count, do_sample=False)
        return ids[:, longest:].tolist()

    amounts = {"prompts": sum(lengths), "new tokens": len(lengths) * (NEW - 1)}
    title = f"{len(lengths)} x {min(lengths)}" + (f" to {longest}" if min(lengths) < longest else "")
    if served:
        title, write = f"served {title}", served_by(scratch, model, prompts)
    sides = generating(write), generating(write_theirs)
    return Contest(f"Llama of 52 M, {title}", amounts, "tokens/s", 1.0, *sides, differing)


class Endless:
    """A tokenizer with a text for every id of the model, of which none ends one."""

    vocab_size, eot_id = VOCAB, -1

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def decode(self, ids):
        return self.tokenizer.decode([token % self.tokenizer.vocab_size for token in ids])


def served_by(scratch, model, prompts):
    """Return what asks a scheduler for continuations, all at once."""
    words = Endless(Tokenizer.load(dataset(scratch)))
    scheduler = Scheduler(model, words, slots=len(prompts), waiting=len(prompts))

    def write(count):
        left = threading.Semaphore(0)
        sampling = Sampling(max_tokens=count, temperature=0.0)
        asked = [
            Request(ids, sampling, time.monotonic() + 600, lambda _, end: end and left.release())
            for ids in prompts
        ]
        for request in asked:
            scheduler.submit(request)
        for _ in asked:
            left.acquire()
        return [request.new_ids for request in asked]

    return write


def beams(scratch):
    """Beam search of an encoder-decoder."""
    model, folder = exported(scratch, "t5")
    theirs, lengths = peer(folder, "AutoModelForSeq2SeqLM"), [SOURCE - 4 * row for row in range(8)]
    sources, start = prompts_of(lengths), theirs.config.decoder_start_token_id
    rows = torch.tensor([source + [0] * (SOURCE - len(source)) for source in sources])
    mask = torch.tensor([[1] * length + [0] * (SOURCE - length) for length in lengths])

    def write():
        return generate_rows(
            model, [[start]] * len(sources), sources, vocab_size=VOCAB, eot_id=-1, max_tokens=TARGET,
            search=Search(BEAMS),
        )  # fmt: skip

    def write_theirs():
        ids = theirs.generate(
            rows, attention_mask=mask, max_new_tokens=TARGET, num_beams=BEAMS, do_sample=False
        )
        return ids[:, 1:].tolist()

    return single(
        "T5 of 60 M, 8 sources, 4 beams", len(sources) * TARGET, "tokens/s", write, write_theirs, differing
    )


def single(title, amount, unit, ours, theirs, apart, tolerance=0.0):
    """Return a contest of one part."""
    work = [lambda call=call: (lambda s, r: ({"all": s}, r))(*timed(call)) for call in (ours, theirs)]
    return Contest(title, {"all": amount}, unit, 1.0, *work, apart, tolerance)


def farthest(ours, theirs):
    """Return the largest difference of two arrays."""
    return float(np.abs(ours - theirs).max())


def embed(scratch):
    """Vectors of texts."""
    folder = exported(scratch, "bert")[1]
    encoder, theirs = encoder_of_folder(folder), peer(folder, "AutoModel")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    generator = np.random.default_rng(1)
    whole = next((scratch / "corpus").iterdir()).read_text().split()
    texts = [" ".join(whole[at : at + generator.integers(4, 120)]) for at in range(0, 10 * TEXTS, 10)]

    def vectors():
        found = np.empty((len(texts), BERT.hidden_size), np.float32)
        for batch in batches_of(encoder.sizes(texts)):
            found[batch] = encoder.embed([texts[place] for place in batch])
        return found

    def vectors_of_theirs():
        found = torch.empty(len(texts), BERT.hidden_size)
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for at in range(0, len(order), 32):
            places = order[at : at + 32]
            batch = tokenizer(
                [texts[place] for place in places], return_tensors="pt", padding=True, truncation=True
            )
            mask = batch["attention_mask"][..., None]
            states = theirs(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
            found[places] = torch.nn.functional.normalize(mean, dim=-1)
        return found.numpy()

    return single("vectors of 256 texts, 11 M", TEXTS, "texts/s", vectors, vectors_of_theirs, farthest, 1e-5)


def search(_scratch):
    """The nearest of a million vectors to one query after another."""
    generator = np.random.default_rng(0)
    passage_PC = generator.standard_normal((PASSAGES, WIDTH), dtype=np.float32)
    passage_PC /= np.linalg.norm(passage_PC, axis=1, keepdims=True)
    query_QC = passage_PC[:QUERIES] + 0.1 * generator.standard_normal((QUERIES, WIDTH), dtype=np.float32)
    index = VectorIndex(passage_PC, exact=True)

    def find():
        return np.concatenate([index.search(query_C[None], FOUND) for query_C in query_QC])

    def find_plainly():
        found = []
        for query_C in query_QC:
            score_P = passage_PC @ query_C
            best_K = np.argpartition(-score_P, FOUND)[:FOUND]
            found.append(best_K[np.argsort(-score_P[best_K])])
        return np.stack(found)

    def missing(ours, theirs):
        return 1 - np.mean([len(set(a) & set(b)) for a, b in zip(ours, theirs, strict=True)]) / FOUND

    return single("1 M vectors of 256, numpy", QUERIES, "queries/s", find, find_plainly, missing)


def perplexity(scratch):
    """The loss of held-out rows."""
    model, folder = exported(scratch, "llama")
    theirs, tokenizer = peer(folder, "AutoModelForCausalLM"), Tokenizer.load(dataset(scratch))
    split = PackedSplit(dataset(scratch), "valid", CONTEXT)
    task = CausalLM(VOCAB, mask_documents=False)

    def measure():
        return evaluate_perplexity(
            model, task, split, tokenizer, Topology.single(), micro_batch_size=4, max_tokens=ROWS * CONTEXT
        ).loss

    def measure_plainly():
        places, total = np.arange(ROWS) * split.num_samples // ROWS, 0.0
        for at in range(0, ROWS, 4):
            batch = split.batch(places[at : at + 4], places[at : at + 4])
            logits_BTV = theirs(torch.from_numpy(batch.tokens_BT).long()).logits
            total += float(
                torch.nn.functional.cross_entropy(
                    logits_BTV.flatten(0, 1),
                    torch.from_numpy(batch.targets_BT).long().flatten(),
                    reduction="sum",
                )
            )
        return total / ROWS / CONTEXT

    return single("perplexity, Llama of 52 M", ROWS * CONTEXT, "tokens/s", measure, measure_plainly,
                  lambda a, b: abs(a - b), 1e-5)  # fmt: skip


CONTESTS = {
    "one": lambda scratch: llama(scratch, [PROMPT]),
    "eight": lambda scratch: llama(scratch, [PROMPT] * 8),
    "unlike": lambda scratch: llama(scratch, [PROMPT - 12 * row for row in range(8)]),
    "served": lambda scratch: llama(scratch, [PROMPT - 12 * row for row in range(8)], served=True),
    "beams": beams,
    "embed": embed,
    "search": search,
    "perplexity": perplexity,
}

if __name__ == "__main__":
    sys.exit(main())
