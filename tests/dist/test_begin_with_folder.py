"""Fine-tuning begins with a Hugging Face folder, and needs it no more once the run is under way."""

import json
import shutil

import pytest
import tiny

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.prepare(tmp_path_factory.mktemp("begin"))


@pytest.fixture(scope="module")
def folder(root):
    """A model that knows the corpus no better than any other, but is told apart by its first loss."""
    from distllm.config.schema_model import ModelConfig
    from distllm.config.shape import settle_shape
    from distllm.data.tokenizer import Tokenizer
    from distllm.export.hf import export_hf
    from distllm.models.init import build_model

    tokenizer = Tokenizer.load(root / "data")
    config = ModelConfig(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, init_std=0.3)
    model = build_model(settle_shape(config, tokenizer.vocab_size, 32), seed=9)
    export_hf(model.state_dict(), model.shape, tokenizer, root / "hf", {})
    return root / "hf"


def evaluations(root, name):
    lines = (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [record for record in records if record.get("kind") == "eval"]


def test_a_run_begins_with_the_folder_and_goes_on_without_it(root, folder):
    words = ["model=hf", f"model.init_from={folder}", "train.max_steps=4", "eval.every_steps=2"]
    asked = tiny.overrides(root, *words, "engine=zero3", "name=tuned")
    asked = [word for word in asked if word != "model.num_layers=2"]
    first = tiny.distllm("train", *asked, "train.stop_at_step=2")
    assert first.returncode == 0, first.stderr
    assert f"starts from the weights of {folder}" in first.stdout
    fresh = tiny.distllm(
        "train", *tiny.overrides(root, "name=fresh", "engine=local", "train.stop_at_step=1")
    )
    assert fresh.returncode == 0, fresh.stderr
    begun, drawn = (evaluations(root, name)[0]["loss"] for name in ("tuned", "fresh"))
    assert begun > drawn + 0.1  # a model of large random weights is surely wrong

    shutil.move(folder, root / "away")
    kept = root / "runs" / "tuned"
    exported = tiny.distllm("export", f"run={kept}")
    assert exported.returncode == 0, exported.stderr
    assert "transformers agrees" in exported.stdout
