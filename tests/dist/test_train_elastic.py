"""A run that changes ranks, what they share, engine, stage and offload in the middle of an epoch trains what it would have."""

import json

import pytest
import tiny

pytestmark = [pytest.mark.dist, pytest.mark.slow]

STEPS = 8
GEOMETRY = ("train.tokens_per_step=384", f"train.max_steps={STEPS}", "cluster.oversubscribe=true", "eval.every_steps=0")
# Ranks, engine, and the step this attempt goes to.
ATTEMPTS = [
    (2, ("engine=zero1", "engine.sequence_ranks=2"), 2),
    (4, ("engine=local", "engine.sequence_ranks=2"), 4),
    (3, ("engine=local",), 6),
    (1, ("engine=zero2", "engine.offload=cpu"), STEPS),
]

# The same numbers are summed in another order, over all eight steps.
RELATIVE_TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.prepare(tmp_path_factory.mktemp("elastic"))


def train(root, name, *more):
    done = tiny.distllm("train", *tiny.overrides(root, f"name={name}", *GEOMETRY, *more))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runs(root):
    """The steps of a run that never stopped, and of one that changed; and what the latter said."""
    train(root, "whole", "engine=local", "cluster.procs_per_node=1", "cluster.threads_per_rank=1")
    told = [
        train(root, "changed", *engine, f"cluster.procs_per_node={ranks}", f"train.stop_at_step={stop}")
        for ranks, engine, stop in ATTEMPTS
    ]
    return tiny.steps(root, "whole"), tiny.steps(root, "changed"), told


def test_every_global_batch_is_the_same(runs):
    whole, changed, _ = runs
    assert sorted(changed) == list(range(1, STEPS + 1))
    assert [changed[step]["batch_digest"] for step in changed] == [whole[step]["batch_digest"] for step in whole]
    assert [changed[step]["lr"] for step in changed] == [whole[step]["lr"] for step in whole]


def test_losses_and_norms_stay_within_the_tolerance(runs):
    whole, changed, _ = runs
    for step in whole:
        for key in ("loss", "grad_norm"):
            assert changed[step][key] == pytest.approx(whole[step][key], rel=RELATIVE_TOLERANCE), (step, key)


def test_every_sample_is_trained_once(root, runs):
    lines = map(json.loads, (root / "runs" / "changed" / "ledger.jsonl").read_text().splitlines())
    events = [line for line in lines if line["kind"] in ("attempt", "done")]
    assert [event["world_size"] for event in events if event["kind"] == "attempt"] == [2, 4, 3, 1]
    samples = events[-1]["samples"]
    assert samples["promised"] == samples["trained"] == 12 * STEPS
    assert samples["skipped"] == samples["excluded"] == samples["damaged"] == 0


def test_each_attempt_says_from_where_and_what_changed(runs):
    *_, told = runs
    for number, (before, now) in enumerate(zip(ATTEMPTS, ATTEMPTS[1:], strict=False), 1):
        assert f"resuming from step {before[2]}" in told[number]
        assert f"cluster.procs_per_node: {before[0]} -> {now[0]}" in told[number]
