"""Real text of four languages, from Debian packages through every stage to a trained model.

Needs a Debian mirror; `make real` runs it, `make test` does not.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = "git-doc,manpages,manpages-de,manpages-fr,manpages-zh"
LANGUAGES = {"en", "de", "fr", "zh"}
PREPARE = ("--config-dir", "tests/real/conf", "data=real-small", "dedup=near", "privacy=all")
SMALL = ("tokenizer.vocab_size=8192",)


def run(*words, **environment):
    done = subprocess.run(
        [str(word) for word in words],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("no apt-get or dpkg-deb: the raw text comes from Debian packages")
    directory = tmp_path_factory.mktemp("corpus") / "real"
    run(sys.executable, "tests/real/corpus.py", directory, "--packages", PACKAGES, "--slice", "16")
    return directory.with_name("real-slice")


@pytest.fixture(scope="module")
def dataset(corpus):
    run("distllm", "prepare", *PREPARE, *SMALL, CORPUS=str(corpus))
    return corpus / "dataset"


@pytest.mark.timeout(1200)
def test_every_document_is_kept_or_accounted_for_and_the_shards_are_sound(corpus, dataset):
    totals = json.loads((corpus / "sources.json").read_text(encoding="utf-8"))["languages"]
    assert set(totals) == LANGUAGES
    report = json.loads((dataset / "report.json").read_text(encoding="utf-8"))
    assert {name.split("-")[0] for name in report} == LANGUAGES
    for name, source in report.items():
        assert source["read"] == source["kept"] + sum(source["dropped"].values()), name
        assert source["kept"] > source["read"] / 2, name
    assert sum(source["read"] for source in report.values()) == sum(
        count["documents"] for count in totals.values()
    )
    run("distllm", "data", "verify", f"out={dataset}")


@pytest.mark.timeout(1200)
def test_a_small_model_learns_from_it(corpus, dataset, tmp_path):
    run(
        "distllm",
        "train",
        *PREPARE,
        *SMALL,
        "model=llama-tiny",
        "data.seq_len=128",
        "train.tokens_per_step=2048",
        "train.max_steps=30",
        "eval.every_steps=30",
        "eval.max_tokens=16384",
        "name=real",
        f"runs_dir={tmp_path}",
        CORPUS=str(corpus),
    )
    records = [json.loads(line) for line in (tmp_path / "real" / "metrics.jsonl").read_text().splitlines()]
    valid = [record["loss"] for record in records if "perplexity" in record]
    assert len(valid) == 2
    assert valid[1] < valid[0] - 1.0
