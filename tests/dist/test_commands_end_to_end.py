"""One tiny run through every command: what each prints must agree with what the others know."""

import json
import re

import pytest
import tiny

from distllm.config.yaml import from_yaml

pytestmark = [pytest.mark.dist, pytest.mark.slow]

QUICK = ("engine=local", "cluster.procs_per_node=1", "name=quick", "train.max_steps=12", "optim.lr=1e-2")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tiny.prepare(tmp_path_factory.mktemp("commands"))
    done = tiny.distllm("train", *tiny.overrides(root, *QUICK))
    assert done.returncode == 0, done.stderr
    (root / "train.out").write_text(done.stdout)
    return root


def ask(root, command, *words):
    done = tiny.distllm(command, "run=quick", f"runs_dir={root}/runs", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def evals(root):
    lines = map(json.loads, (root / "runs" / "quick" / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "eval"]


def test_the_run_directory_holds_what_the_docs_promise(root):
    names = {path.name for path in (root / "runs" / "quick").iterdir()}
    promised = {"config.yaml", "explain.json", "deepspeed.json", "metrics.jsonl", "checkpoints", "samples"}
    assert promised <= names
    assert "owner.json" not in names
    settings = json.loads((root / "runs" / "quick" / "deepspeed.json").read_text())
    assert settings["train_batch_size"] == 16
    assert from_yaml(root / "runs" / "quick" / "config.yaml")["optim"]["lr"] == 0.01


def test_the_console_has_one_line_per_step_and_every_column(root):
    printed = (root / "train.out").read_text()
    for column in ("step", "tokens", "loss", "lr", "grad norm", "tok/s", "MFU", "wait", "memory", "ETA"):
        assert column in printed
    assert len(re.findall(r"^ *\d+/12 ", printed, re.MULTILINE)) == 12
    assert printed.count("== sample at step") == len(evals(root)) == 4
    assert "grad_accum_steps = 4" in printed
    explained = json.loads((root / "runs" / "quick" / "explain.json").read_text())
    derived = [
        name
        for name, entry in explained.items()
        if entry["from"] == "derived" and not name.startswith(("deepspeed.", "attention."))
    ]
    assert {"warmup_tokens", "vocab_size", "head_dim"} <= set(derived)
    assert [name for name in derived if f"== {name} = " not in printed] == []
    assert printed.count("== attention.global") == 1  # chosen, not derived: told with the kernels


def test_training_lowers_the_validation_loss(root):
    losses = [line["loss"] for line in evals(root)]
    assert losses[-1] < losses[0] - 0.3
    assert all(line["bits_per_byte"] > 0 for line in evals(root))


def test_metrics_follow_the_tokens(root):
    records = tiny.steps(root, "quick")
    assert [records[step]["tokens"] for step in sorted(records)] == [512 * step for step in range(1, 13)]
    assert all(0 <= record["overhead_fraction"] < 1 for record in records.values())
    assert len({record["batch_digest"] for record in records.values()}) == 12


def test_evaluate_measures_what_training_measured(root):
    printed = ask(root, "evaluate", "max_tokens=512")
    loss = float(re.search(r"validation loss (\d+\.\d+)", printed)[1])
    assert loss == pytest.approx(evals(root)[-1]["loss"], abs=1e-4)
    assert "step 12:" in printed


def test_evaluate_takes_an_older_checkpoint(root):
    kept = sorted((root / "runs" / "quick" / "checkpoints").glob("step-*"))
    assert len(kept) == 3
    printed = ask(root, "evaluate", "step=8", "max_tokens=512")
    loss = float(re.search(r"validation loss (\d+\.\d+)", printed)[1])
    (at_8,) = [line["loss"] for line in evals(root) if line["step"] == 8]
    assert loss == pytest.approx(at_8, abs=1e-4)


def test_a_checkpoint_that_was_pruned_is_named(root):
    done = tiny.distllm("evaluate", "run=quick", f"runs_dir={root}/runs", "step=2")
    assert done.returncode == 65
    assert "step 2" in done.stderr
    assert "step-000000012" in done.stderr


def test_inspect_prints_the_exact_text_of_the_step(root):
    printed = ask(root, "inspect", "step=3")
    assert printed.count("##### step 3, rank 0, micro-batch") == 4
    assert printed.count("=== row") == 16
    texts = [path.read_text() for path in (root / "corpus").iterdir()]
    shown = [
        part for part in re.split(r"^(?:#####|===|---).*\n", printed, flags=re.MULTILINE) if part.strip()
    ]
    assert len(shown) >= 16
    assert all(any(piece.strip("\n") in text for text in texts) for piece in shown)


def test_inspect_refuses_a_step_after_the_last(root):
    done = tiny.distllm("inspect", "run=quick", f"runs_dir={root}/runs", "step=13")
    assert done.returncode == 64
    assert "after the last step, 12" in done.stderr


def test_generate_continues_the_prompt_and_repeats_itself_by_seed(root):
    first, again, other = (
        ask(root, "generate", "prompt=the model", "max_tokens=12", f"seed={seed}") for seed in (1, 1, 2)
    )
    assert first.startswith("the model")
    assert first == again != other


def test_export_agrees_with_transformers_and_says_what_it_is(root):
    printed = ask(root, "export")
    difference = float(re.search(r"difference of logits (\S+)", printed)[1])
    assert difference <= 1e-5
    folder = root / "runs" / "quick" / "hf"
    files = {path.name for path in folder.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
        "README.md",
    } <= files
    assert "12" in (folder / "README.md").read_text()
    again = ask(root, "export")
    assert "wrote" in again


def test_a_folder_is_measured_in_place_of_a_checkpoint(root):
    ask(root, "export", f"out={root}/measured", "verify=false")
    printed = ask(root, "evaluate", f"model={root}/measured", "max_tokens=512")
    loss = float(re.search(r"/measured: validation loss (\d+\.\d+)", printed)[1])
    assert loss == pytest.approx(evals(root)[-1]["loss"], abs=1e-4)


def test_the_exported_folder_generates_the_same_greedy_text(root):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ask(root, "export", f"out={root}/hf")
    tokenizer = AutoTokenizer.from_pretrained(root / "hf")
    model = AutoModelForCausalLM.from_pretrained(root / "hf")
    prompt = "the text"
    ids = tokenizer(tokenizer.bos_token + prompt, add_special_tokens=False, return_tensors="pt").input_ids
    theirs = model.generate(ids, max_new_tokens=10, do_sample=False)[0, ids.shape[1] :]
    ours = ask(root, "generate", f"prompt={prompt}", "max_tokens=10", "temperature=0")
    assert ours.rstrip("\n") == (prompt + tokenizer.decode(theirs, skip_special_tokens=True)).rstrip("\n")


def test_explain_knows_the_run(root):
    done = tiny.distllm("explain", "optim.lr", f"run={root}/runs/quick")
    assert done.returncode == 0, done.stderr
    assert "optim.lr = 0.01" in done.stdout
    assert "override optim.lr=1e-2" in done.stdout


def test_training_a_finished_run_again_changes_nothing(root):
    before = (root / "runs" / "quick" / "checkpoints" / "step-000000012" / "manifest.json").read_bytes()
    done = tiny.distllm("train", *tiny.overrides(root, *QUICK))
    assert done.returncode == 0, done.stderr
    assert "nothing is left to train" in done.stdout
    assert (
        root / "runs" / "quick" / "checkpoints" / "step-000000012" / "manifest.json"
    ).read_bytes() == before
    assert len(evals(root)) == 4


def test_without_a_dataset_the_remedy_is_the_prepare_command(root):
    done = tiny.distllm("train", *tiny.overrides(root, *QUICK, f"data.out={root}/missing"))
    assert done.returncode == 64
    assert f"run: distllm prepare data.out={root}/missing" in done.stderr


def test_runs_dir_that_is_a_file_is_named(root):
    (root / "file").write_text("in the way")
    done = tiny.distllm("train", *tiny.overrides(root, *QUICK, f"runs_dir={root}/file"))
    assert done.returncode == 74, done.stderr
    assert "Traceback" not in done.stderr


def test_a_sweep_trains_each_combination_in_its_own_directory(root):
    words = tiny.overrides(root, *QUICK, "name=sweep", "train.max_steps=1", "eval=none", "optim.lr=1e-3,2e-3")
    words = [word for word in words if word != "name=quick" and word != "optim.lr=1e-2"]
    done = tiny.distllm("train", "-m", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    names = {path.name for path in (root / "runs").iterdir() if path.name.startswith("sweep")}
    assert names == {"sweep.optim.lr=0.001", "sweep.optim.lr=0.002"}
    both = ",".join(f"{root}/runs/{name}" for name in sorted(names))
    assert f"side by side: distllm report run={both}" in done.stdout
