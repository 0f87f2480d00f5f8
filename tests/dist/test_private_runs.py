"""Whole runs with privacy: canaries watched while a model learns them, and a private run that resumes."""

import json

import pytest
import tiny

pytestmark = [pytest.mark.dist, pytest.mark.slow]


def evaluations(root, name="tiny"):
    lines = map(json.loads, (root / "runs" / name / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["exposure"] for line in lines if line["kind"] == "eval"}


def test_a_canary_that_is_learnt_is_exposed_alike_on_any_ranks(tmp_path):
    tiny.write_corpus(tmp_path / "corpus", documents=60)
    words = tiny.overrides(
        tmp_path, "privacy.canaries.repeats=[0,400]", "privacy.canaries.space=64", "train.max_steps=40",
        "eval.every_steps=20", "optim.lr=1e-2", "engine=zero3", "eval.sample_tokens=0",
    )  # fmt: skip
    done = tiny.distllm("prepare", *words)
    assert done.returncode == 0, done.stderr
    done = tiny.distllm("train", *words)
    assert done.returncode == 0, done.stderr
    found = evaluations(tmp_path)
    assert sorted(found) == [0, 20, 40]
    assert found[40]["x400"] == 6.0  # the likeliest of 64
    assert found[0]["x400"] < 6.0
    assert "exposure x400 6.00 bits" in done.stdout
    measured = tiny.distllm("evaluate", "run=tiny", f"runs_dir={tmp_path}/runs")
    assert measured.returncode == 0, measured.stderr
    shown = {
        line.split()[1]: float(line.split()[2]) for line in measured.stdout.splitlines() if "exposure" in line
    }
    assert shown == {name: pytest.approx(bits, abs=0.01) for name, bits in found[40].items()}


def test_a_private_run_resumes_exactly_and_knows_what_it_gave_away(tmp_path):
    tiny.write_corpus(tmp_path / "corpus", documents=60)
    private = [
        "engine=local", "optim.private.noise=0.8", "optim.private.clip=0.5", "data.packing=single",
        "data.too_long=cut", "guard.spike_threshold=0", "eval.every_steps=0",
    ]  # fmt: skip
    words = tiny.overrides(tmp_path, *private)
    done = tiny.distllm("prepare", *words)
    assert done.returncode == 0, done.stderr
    refused = tiny.distllm("train", *words, "engine=zero2", "data.packing=window")
    assert refused.returncode == 64
    assert "engine=local" in refused.stderr
    assert "data.packing=single" in refused.stderr
    done = tiny.distllm("train", *words)
    assert done.returncode == 0, done.stderr
    assert "private: rows are clipped to 0.5" in done.stdout
    whole = tiny.steps(tmp_path)
    (tmp_path / "runs" / "cut").mkdir()
    key = (tmp_path / "runs" / "tiny" / "noise.key").read_bytes()
    (tmp_path / "runs" / "cut" / "noise.key").write_bytes(key)
    for stop, ranks in ((3, 2), (8, 2)):
        done = tiny.distllm("train", *words, "name=cut", f"train.stop_at_step={stop}",
                            f"cluster.procs_per_node={ranks}")  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert tiny.exact(tiny.steps(tmp_path, "cut")) == tiny.exact(whole)
    spent = [whole[step]["epsilon"] for step in sorted(whole)]
    assert spent == sorted(spent)
    assert spent[0] > 0
    (last,) = (tmp_path / "runs" / "tiny" / "checkpoints").glob("step-*8")
    assert any(f'"epsilon": {spent[-1]}' in file.read_text() for file in last.glob("*.json"))
    # nothing that is published holds the secret
    secret = key.decode()
    for path in (tmp_path / "runs" / "tiny").rglob("*"):
        if path.is_file() and path.name != "noise.key":
            assert secret not in path.read_bytes().decode("latin-1"), path
