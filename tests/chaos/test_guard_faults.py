"""Wrong numbers and flipped bits in the middle of a run: found, named, and without a trace afterwards."""

import json

import pytest
import tiny

from distllm.checkpoint.format import list_checkpoints, list_quarantined
from distllm.observe import wandb_file

pytestmark = [pytest.mark.dist, pytest.mark.slow]

STEPS = 24
SEQUENCES = 16  # of a step: 512 tokens in rows of 32


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.prepare(tmp_path_factory.mktemp("guard"))


def train(root, name, *more):
    return tiny.distllm(
        "train",
        *tiny.overrides(
            root,
            f"name={name}",
            "engine=local",
            "eval=none",
            "guard=every_step",
            f"train.max_steps={STEPS}",
            *more,
        ),
    )


def notes(root, name):
    lines = map(json.loads, (root / "runs" / name / "metrics.jsonl").read_text().splitlines())
    return [line["text"] for line in lines if line["kind"] == "note"]


def shown(root, name, step):
    """The rows that `distllm inspect` shows of a step, without the headings that number it."""
    done = tiny.distllm("inspect", f"run={root}/runs/{name}", f"step={step}")
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if not line.startswith("#####")]


@pytest.fixture(scope="module")
def untouched(root):
    done = train(root, "untouched")
    assert done.returncode == 0, done.stderr
    return tiny.steps(root, "untouched")


def test_one_flipped_bit_is_found_names_its_rank_and_leaves_no_trace(root, untouched):
    done = train(root, "flipped", "chaos.faults=[bit_flip@6:1]")
    assert done.returncode == 0, done.stderr
    told = notes(root, "flipped")
    assert "corrupted memory on rank 1: the weights changed between two updates" in told
    assert any(text.endswith("back to step 4") for text in told)
    assert tiny.exact(tiny.steps(root, "flipped")) == tiny.exact(untouched)


def test_a_bad_step_is_skipped_and_a_streak_goes_back_and_leaves_its_samples_out(root, untouched):
    done = train(root, "bad", "chaos.faults=[nan@5:1, spike@18:0, spike@21:1x3]")
    assert done.returncode == 0, done.stderr
    told, steps = notes(root, "bad"), tiny.steps(root, "bad")
    skipped = [text for text in told if text.startswith("skipped")]
    assert [text.split(",")[0] for text in skipped] == ["skipped: non_finite"] + ["skipped: loss_spike"] * 4
    assert tiny.exact(steps)[:4] == tiny.exact(untouched)[:4]
    assert steps[5]["loss"] == "nan"
    assert steps[6]["batch_digest"] == untouched[6]["batch_digest"]
    assert steps[6]["loss"] == pytest.approx(untouched[6]["loss"], rel=0.02)
    # Back to step 20, and from there with the samples that step 24 would have had.
    first, stop = 20 * SEQUENCES, 23 * SEQUENCES
    assert any(text.endswith(f"back to step 20, samples {first} to {stop - 1} are left out") for text in told)
    assert steps[21]["batch_digest"] == untouched[24]["batch_digest"]
    assert steps[24]["loss"] < steps[17]["loss"]
    texts = {name: shown(root, name, step) for name, step in (("bad", 21), ("untouched", 24))}
    assert texts["bad"] == texts["untouched"]
    assert steps[24]["skipped_steps"] == 2, "the three of the streak belong to what was undone"
    checkpoints = root / "runs" / "bad" / "checkpoints"
    assert list_checkpoints(checkpoints)[0].name == "step-000000024"
    assert [path.name.split(".")[0] for path in list_quarantined(checkpoints)] == ["step-000000022"]


def test_the_samples_left_out_stay_out_after_a_kill(root, untouched):
    faults = ("checkpoint.every_steps=6", "chaos.faults=[spike@19:1x3, kill@22:0]")
    done = train(root, "killed", *faults)
    assert done.returncode == 0, done.stderr
    assert tiny.steps(root, "killed")[19]["batch_digest"] == untouched[22]["batch_digest"]
    assert not any("differs from when it was taken" in text for text in notes(root, "killed"))


def test_a_resume_that_is_not_exact_says_where_the_histories_part(root, untouched):
    kill = ("chaos.faults=[kill@8:0]", "cluster.max_restarts=0")
    assert train(root, "elastic", "checkpoint.every_steps=5", *kill).returncode != 0
    done = train(root, "elastic", "checkpoint.every_steps=5", *kill, "cluster.procs_per_node=1")
    assert done.returncode == 0, done.stderr
    parted = [text for text in notes(root, "elastic") if "differs from when it was taken" in text]
    assert len(parted) == 1
    # One rank sums in another order than two; a sum may come out the same by chance.
    assert parted[0].startswith(("step 6 ", "step 7 "))
    assert parted[0].endswith("on the same batch")
    for step, record in tiny.steps(root, "elastic").items():
        assert record["batch_digest"] == untouched[step]["batch_digest"]
        assert record["loss"] == pytest.approx(untouched[step]["loss"], rel=2e-6)


def test_a_rank_without_memory_takes_half_as_much_at_a_time(root, untouched):
    first = train(root, "large", "chaos.faults=[out_of_memory@7:1]")
    assert first.returncode == 0, first.stderr
    limit = json.loads((root / "runs" / "large" / "memory.json").read_text())
    assert (limit["micro_batch_tokens"], limit["step"], limit["rank"]) == (128, 7, 1)
    assert "of main memory held" in limit["report"]
    told = notes(root, "large")
    assert any(text.startswith("micro_batch_size = 2 ") and "memory.json" in text for text in told)
    assert any(text.startswith("grad_accum_steps = 4 ") for text in told)
    for step, record in tiny.steps(root, "large").items():
        assert record["batch_digest"] == untouched[step]["batch_digest"]
        assert record["loss"] == pytest.approx(untouched[step]["loss"], rel=2e-6)
    explained = tiny.distllm("explain", "micro_batch_size", f"run={root}/runs/large")
    assert "memory.json" in explained.stdout


def test_a_run_that_can_go_nowhere_stops_at_the_second_time_and_says_why(root):
    diverging = (
        "optim.lr=1e30",
        "schedule.warmup_fraction=0",
        "guard.skip_budget=2",
        "cluster.max_restarts=9",
    )
    done = train(root, "hopeless", *diverging, "checkpoint.every_steps=9")
    assert done.returncode == 64, done.stderr
    (told,) = [line for line in done.stderr.splitlines() if "not restarted" in line]
    step = int(told.partition("at step ")[2].split()[0])
    assert f"2 steps in a row were skipped, up to step {step}" in told
    assert "there is no checkpoint" in told
    assert done.stderr.count("restarting the ranks") == 1


def test_spikes_that_cannot_be_left_out_are_believed(root):
    done = train(root, "jumpy", "checkpoint.every_steps=99", "chaos.faults=[spike@18:1x3]")
    assert done.returncode == 0, done.stderr
    (told,) = [text for text in notes(root, "jumpy") if "cannot go back" in text]
    assert told.startswith("3 steps in a row were skipped, up to step 20")
    steps = tiny.steps(root, "jumpy")
    assert steps[24]["skipped_steps"] == 3
    assert steps[24]["loss"] < steps[17]["loss"]


def test_the_rewinds_are_bounded_and_dashboards_hear_of_the_end(root):
    bounds = ("guard.skip_budget=1", "guard.max_rewinds=1", "cluster.max_restarts=0", "logger=wandb")
    done = train(root, "bounded", *bounds, "chaos.faults=[nan@5:0x2]")
    assert done.returncode == 70
    assert "has gone back 1 times already" in done.stderr
    (file,) = root.glob("runs/bounded/wandb/offline-run-*/run-*.wandb")
    records = [record for _, record in wandb_file._read(file)]
    assert "Failed" in [record.alert.title for record in records if record.HasField("alert")]
    assert records[-1].exit.exit_code == 70
