"""A run with growing steps, an average of its weights and an early end: exact over a resume, and followed live."""

import json
import subprocess

import pytest
import tiny

pytestmark = [pytest.mark.dist, pytest.mark.slow]
SIZES = [128] * 4 + [256] * 2 + [512] * 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run twice: straight, and stopped, followed and resumed."""
    root = tiny.prepare(tmp_path_factory.mktemp("growing"))
    words = tiny.overrides(
        root, "engine=local", "cluster.procs_per_node=1", "batch.start_tokens=128", "batch.warmup_tokens=1024",
        "train.max_steps=20", "optim.ema=0.9", "eval.every_steps=4", "eval.sample_tokens=0",
        "train.early_stopping.patience=2", "train.early_stopping.min_delta=1.0", "checkpoint.keep_last=9",
    )  # fmt: skip
    straight = tiny.distllm("train", *words, "name=straight")
    first = tiny.distllm("train", *words, "name=tiny", "train.stop_at_step=3")
    assert (straight.returncode, first.returncode) == (0, 0), straight.stderr + first.stderr
    follow = tiny.command("evaluate", "run=tiny", f"runs_dir={root}/runs", "follow=true", "max_tokens=512")
    follower = subprocess.Popen(
        [*follow, "weights=ema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=tiny.environment(),
    )  # fmt: skip
    try:
        second = tiny.distllm("train", *words, "name=tiny")
        said, wrong = follower.communicate(timeout=200)
    finally:
        follower.kill()
    assert (second.returncode, follower.returncode) == (0, 0), second.stderr + wrong
    return root, second.stdout, said


def test_a_resumed_run_is_the_same_to_the_last_bit(runs):
    root = runs[0]
    straight, resumed = (tiny.exact(tiny.steps(root, name)) for name in ("straight", "tiny"))
    assert straight == resumed
    assert len(straight) == len(SIZES)


def test_steps_grow_and_the_rate_is_one_of_tokens(runs):
    records = tiny.steps(runs[0])
    tokens = [records[step]["tokens"] for step in sorted(records)]
    seen = [0, *tokens]
    taken = [after - before for before, after in zip(seen, tokens, strict=False)]
    assert all(0.8 * size < got <= size for size, got in zip(SIZES, taken, strict=True))
    total = json.loads((runs[0] / "runs" / "tiny" / "explain.json").read_text())["total_tokens"]["value"]
    assert total == sum(SIZES) + 12 * 512


def test_it_ends_early_and_says_why(runs):
    root, said, _ = runs
    assert "early stopping: loss was" in said
    assert "done at step 8" in said
    events = [json.loads(line) for line in (root / "runs" / "tiny" / "ledger.jsonl").read_text().splitlines()]
    assert events[-1]["kind"] == "done"
    assert "early stopping" in events[-1]["why"]


def test_every_checkpoint_is_measured_while_the_run_is_live(runs):
    measured = [line for line in runs[2].splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in measured] == [f"step {step}" for step in (2, 3, 4, 6, 8)]
    assert all("validation loss" in line for line in measured)
