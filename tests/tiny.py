"""A whole experiment small enough for tests: a corpus, a dataset and a model of a few thousand weights."""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

WORDS = ("the", "model", "reads", "a", "token", "and", "learns", "what", "follows", "from", "before", "it")


def write_corpus(directory: Path, documents: int = 300) -> Path:
    """Write text files of random sentences; the same on every call."""
    generator = random.Random(0)
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(documents):
        sentences = [" ".join(generator.choices(WORDS, k=12)) for _ in range(generator.randint(2, 12))]
        (directory / f"{number:04d}.txt").write_text(f"Document {number}.\n" + "\n".join(sentences))
    return directory


def overrides(root: Path, *more: str) -> list[str]:
    """The command-line overrides of a tiny run under ``root``; later ones win.

    Its steps take milliseconds, and tests count on a checkpoint being there when the next step begins.
    """
    return [
        "data=text", f"data.paths=[{root}/corpus]", f"data.out={root}/data", "data.valid_fraction=0.1",
        "data.seq_len=32", "tokenizer.vocab_size=320", f"runs_dir={root}/runs", "name=tiny",
        "model.hidden_size=32", "model.num_layers=2", "model.num_heads=4", "model.num_kv_heads=2",
        "train.tokens_per_step=512", "train.max_steps=8", "engine.micro_batch_tokens=128",
        "engine.bucket_bytes=65536", "eval.every_steps=4", "eval.max_tokens=512", "eval.sample_tokens=4",
        "checkpoint.every_steps=2", "checkpoint.background=false", "cluster.procs_per_node=2", *more,
    ]  # fmt: skip


def prepare(root: Path, *more: str) -> Path:
    """Write the corpus and prepare the dataset of `overrides`."""
    write_corpus(root / "corpus")
    done = distllm("prepare", *overrides(root, *more))
    assert done.returncode == 0, done.stderr
    return root


def command(*words: str) -> list[str]:
    """The command line of a `distllm` sub-command."""
    return [sys.executable, "-m", "distllm.cli", *words]


def environment(**more: str) -> dict[str, str]:
    """This process's environment without any launcher's variables, and without its own wandb service."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    clean = {key: value for key, value in os.environ.items() if key not in (*launcher, "WANDB_SERVICE")}
    return {**clean, **more}


def only_rank() -> dict[str, str]:
    """The variables by which a launcher says that this process is the only rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    rank = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    return {**rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def distllm(*words: str, timeout: float = 240, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a sub-command to its end."""
    return subprocess.run(
        command(*words), capture_output=True, text=True, timeout=timeout, check=False, env=environment(**more)
    )


def steps(root: Path, name: str = "tiny", attempt: int | None = None) -> dict[int, dict]:
    """The step records of a run by step: of one attempt, or the newest of each step.

    The run may be writing: half a line at the end is none yet.
    """
    text = (root / "runs" / name / "metrics.jsonl").read_text()
    lines = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
    wanted = [x for x in lines if x["kind"] == "step" and attempt in (None, x["attempt"])]
    return {line["step"]: line for line in wanted}


def exact(records: dict[int, dict]) -> list[tuple]:
    """What must be equal to the last bit between two runs of the same thing."""
    return [
        (step, r["loss"], r["grad_norm"], r["lr"], r["batch_digest"], r["chain"])
        for step, r in sorted(records.items())
    ]
