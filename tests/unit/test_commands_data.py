"""The actions of `distllm data`, and the runs that saw what is forgotten."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from prepared import byte_tokenizer, write_dataset, write_sources
from transactions import transaction

from distllm.cli import main
from distllm.commands.witnesses import Witness, witnesses
from distllm.config.schema import Config, DataConfig, TrainConfig
from distllm.config.yaml import to_yaml
from distllm.data.manifest import Manifest
from distllm.data.order import SampleOrder
from distllm.data.shards import forget
from distllm.data.stream import PackedSplit, StepStream
from distllm.errors import ConfigError
from distllm.observe.ledger import Ledger

SEQ_LEN, PER_STEP, MARK = 8, 4, 200


@pytest.fixture
def dataset(tmp_path):
    tokenizer = byte_tokenizer()
    sources = {
        "web": {"train": [tokenizer.encode(f"text {i}") for i in range(9)], "valid": [[5, 6]]},
        "pairs": {"train": [(tokenizer.encode("eins"), tokenizer.encode("one"))], "valid": []},
    }
    write_sources(tmp_path / "set", sources, fields={"pairs": ("source", "target")}, shard_bytes=60)
    return tmp_path / "set"


def said(capsys, *words):
    assert main(["data", *map(str, words)]) == 0
    return capsys.readouterr().out


def refused(capsys, code, *words):
    assert main(["data", *map(str, words)]) == code
    return capsys.readouterr().err


def test_help_and_typos(capsys):
    assert "forget" in said(capsys)
    assert said(capsys, "--help") == said(capsys)
    assert "did you mean 'verify'?" in refused(capsys, 64, "verfy")
    for action in ("verify", "inspect", "stats", "reindex", "forget"):
        assert "out=... is missing" in refused(capsys, 64, action)


def test_verify_prints_the_digest_or_every_problem(capsys, dataset):
    assert Manifest.load(dataset).digest in said(capsys, "verify", f"out={dataset}")
    (dataset / "web" / "train" / "00000.tar").unlink()
    (dataset / "pairs" / "train" / "00000.ids.gz").unlink()
    message = refused(capsys, 65, "verify", f"out={dataset}")
    assert "2 problems" in message
    assert "web/train/00000.tar: it is missing" in message
    assert "00000.ids.gz is missing" in message


def test_inspect_shows_the_exact_text(capsys, dataset):
    out = said(capsys, "inspect", f"out={dataset}", "source=web", "document=7")
    assert out == "=== web/train document 7 · 7 tokens · train-7\ntext 7\n"
    both = said(capsys, "inspect", f"out={dataset}", "id=train-0")
    assert "--- source\neins\n--- target\none\n" in both
    assert "text 0\n" in both
    assert "web/valid 1 documents" in said(capsys, "inspect", f"out={dataset}")
    message = refused(capsys, 64, "inspect", f"out={dataset}", "document=0")
    assert "has 2 sources" in message
    assert "pairs, web" in message
    assert "no document 9" in refused(capsys, 65, "inspect", f"out={dataset}", "source=web", "document=9")


def test_stats_count(capsys, dataset):
    out = said(capsys, "stats", f"out={dataset}")
    assert "web/train: 9 documents, 63 tokens, 54 B of text, 0.857 bytes/token" in out
    assert "tokens a document: 0% 7, 25% 7, 50% 7" in out
    assert "pairs/valid: no documents\n" in out
    assert "forgotten" not in out
    said(capsys, "forget", f"out={dataset}", "id=train-3", "source=web")
    assert "forgotten documents: 1" in said(capsys, "stats", f"out={dataset}")


def test_ls_finds_datasets_and_says_which_are_unusable(capsys, dataset, tmp_path):
    write_dataset(tmp_path / "other", train=[[1]])
    (tmp_path / "other" / "index.json").unlink()
    (tmp_path / "runs" / "a" / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "checkpoints" / "step-1" / "manifest.json").write_text("{}")
    lines = said(capsys, "ls", tmp_path).splitlines()
    assert lines[0].startswith(f"{tmp_path / 'other'}  unusable: index.json")
    assert lines[1].startswith(f"{dataset}  digest {Manifest.load(dataset).digest}")
    assert len(lines) == 6
    (tmp_path / "empty").mkdir()
    assert "no dataset below" in refused(capsys, 65, "ls", tmp_path / "empty")
    assert "which directory" in refused(capsys, 64, "ls")


def test_merge_and_reindex(capsys, dataset, tmp_path):
    out = said(capsys, "merge", f"out={tmp_path / 'both'}", dataset, dataset)
    assert "web-2/train 9 documents" in out
    said(capsys, "verify", f"out={tmp_path / 'both'}")
    assert "which datasets" in refused(capsys, 64, "merge", f"out={tmp_path / 'more'}")
    (dataset / "index.json").unlink()
    assert "distllm data reindex" in refused(capsys, 65, "verify", f"out={dataset}")
    assert Manifest.read(dataset).digest in said(capsys, "reindex", f"out={dataset}")
    said(capsys, "verify", f"out={dataset}")


def test_forget_takes_many_ids_and_names_the_places(capsys, dataset, tmp_path):
    words = ["forget", f"out={dataset}", f"runs={tmp_path / 'none'}"]
    assert "nothing to do" in said(capsys, *words)
    out = said(capsys, *words, "id=train-0", "id=valid-0")
    assert "forgot train-0: pairs/train document 0" in out
    assert "forgot valid-0: web/valid document 0" in out
    assert "raw input" in out
    assert "(forgotten)\n" in said(capsys, "inspect", f"out={dataset}", "source=web", "document=0")
    assert "no document 'train-0'" in refused(capsys, 65, *words, "id=train-0")
    assert "unknown key" in refused(capsys, 64, *words, "ids=train-0")


def write_marked(tmp_path, shift=0):
    """Write a dataset in which document train-40 holds MARK alone, ``shift`` ids further on."""
    documents = [[1 + (i + j) % 90 for j in range(i % 25)] for i in range(60)]
    documents[0], documents[40] = [1] * shift, [MARK] * 21
    write_dataset(tmp_path / "set", train=documents, valid=[[MARK] * 3], shard_bytes=300)
    return tmp_path / "set"


@pytest.fixture
def marked(tmp_path):
    return write_marked(tmp_path)


def config_of(directory, seed=3):
    return Config(
        seed=seed,
        data=DataConfig(out=str(directory), seq_len=SEQ_LEN),
        train=TrainConfig(tokens_per_step=SEQ_LEN * PER_STEP, max_steps=100),
    )


def write_run(runs, name, config, *, samples=None, logged=None, digest="another"):
    directory = runs / name
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "config.yaml").write_text(to_yaml(asdict(config)))
    if samples is not None:
        for held in (PER_STEP, samples):
            state = {"format": 1, "train_state": {"samples": held}, "facts": {"dataset": digest}}
            with transaction(directory / "checkpoints", held // PER_STEP) as files:
                files.write("state.json", json.dumps(state).encode())
    if logged is not None:
        lines = [{"kind": "note", "text": "x"}, *({"kind": "step", "step": i + 1} for i in range(logged))]
        text = "".join(json.dumps({"attempt": 1, **line}) + "\n" for line in lines)
        (directory / "metrics.jsonl").write_text(text)


def test_stats_say_what_packing_wastes(tmp_path, capsys):
    write_dataset(tmp_path, train=[[1] * 5, [2] * 7, [3] * 6], valid=[[1] * 30])
    lines = said(capsys, "stats", f"out={tmp_path}", "seq_len=10").splitlines()
    assert "train as rows of 10, data.packing=window: 2 rows, 0.00% padding" in lines
    assert "train as rows of 10, data.packing=greedy: 3 rows, 30.00% padding" in lines
    assert "valid as rows of 10, data.packing=best_fit: 4 rows, 22.50% padding" in lines


def steps_with_mark(directory, steps, seed):
    """Every step whose batches hold MARK as an input or a target, by looking at all of them."""
    split = PackedSplit(directory, "train", SEQ_LEN)
    stream = StepStream(
        split,
        SampleOrder.single(split.num_samples, seed),
        sequences_per_step=PER_STEP,
        micro_batch_size=PER_STEP,
        rank=0,
        world_size=1,
    )
    found = []
    for step in range(steps):
        (batch,) = stream.step(step * PER_STEP)
        if (np.concatenate([batch.tokens_BT, batch.targets_BT]) == MARK).any():
            found.append(step + 1)
    stream.close()
    return found


@pytest.mark.parametrize("shift", range(SEQ_LEN))
def test_the_steps_that_saw_a_document_are_those_whose_batches_held_it(tmp_path, shift):
    steps, seed, marked = 60, shift, write_marked(tmp_path, shift)
    expected = steps_with_mark(marked, steps, seed)
    assert len(expected) > 3
    write_run(tmp_path / "runs", "a", config_of(marked, seed), samples=steps * PER_STEP)
    (witness,) = witnesses(tmp_path / "runs", marked, forget(marked, ["train-40"]))
    assert [step for first, last in witness.steps for step in range(first, last + 1)] == expected
    assert steps_with_mark(marked, steps, seed) == []
    assert "was trained on batches that held it, in the steps" in str(witness)


@pytest.mark.slow
def test_runs_are_found_by_their_dataset_and_by_how_far_they_came(marked, tmp_path):
    runs, old = tmp_path / "runs", Manifest.load(marked).digest
    expected = steps_with_mark(marked, 60, 3)
    config = config_of(marked)
    write_run(runs, "early", config, samples=(expected[0] - 1) * PER_STEP)
    write_run(runs, "elsewhere", config_of(tmp_path / "moved"), samples=60 * PER_STEP, digest=old)
    write_run(runs, "logged", config, logged=60)
    write_run(runs, "both", config, samples=60 * PER_STEP, logged=1)
    write_run(runs, "never", config)
    write_run(runs, "other", config_of(tmp_path / "other"), samples=60 * PER_STEP)
    for name, file in (("damaged", "checkpoints/step-000000060/state.json"), ("torn", "metrics.jsonl")):
        write_run(runs, name, config, samples=60 * PER_STEP, logged=60)
        content = (runs / name / file).read_bytes()
        (runs / name / file).write_bytes(b"x" + content[1:])
    (runs / "broken").mkdir()
    (runs / "broken" / "config.yaml").write_text("data: {no_such_key: 1}")
    found = {w.run.name: w for w in witnesses(runs, marked, forget(marked, ["train-40"]))}
    assert set(found) == {"both", "broken", "damaged", "early", "elsewhere", "logged", "never", "torn"}
    assert found["elsewhere"].steps == found["logged"].steps == found["both"].steps != ()
    assert found["never"].steps == ()
    assert "did not see" in str(found["never"])
    assert all("cannot be determined" in str(found[name]) for name in ("broken", "damaged", "torn"))


def test_steps_that_changed_no_weight_are_told_apart(marked, tmp_path):
    expected = steps_with_mark(marked, 60, 3)
    write_run(tmp_path / "runs", "a", config_of(marked), samples=60 * PER_STEP)
    first, second, third = expected[:3]
    ledger = Ledger(tmp_path / "runs" / "a" / "ledger.jsonl", 1)
    ledger.event("skipped", step=first)
    ledger.event("skipped", step=third)
    ledger.event("resumed", step=first)  # the third is taken again, and this time it counts
    ledger.event("passed_over", step=second)
    ledger.event("skipped", step=third)
    ledger.event("rewind", step=third, to=second)
    (witness,) = witnesses(tmp_path / "runs", marked, forget(marked, ["train-40"]))
    listed = [step for a, b in witness.idle for step in range(a, b + 1)]
    assert listed == [first, second]
    assert [step for a, b in witness.steps for step in range(a, b + 1)] == expected[2:]
    assert "held it and changed no weight" in str(witness)
    assert str(replace(witness, steps=())).startswith(f"run {witness.run} was not trained on it: the steps")


def test_a_document_that_was_held_out_was_trained_on_by_nobody(marked, tmp_path):
    write_run(tmp_path / "runs", "a", config_of(marked), samples=400)
    (witness,) = witnesses(tmp_path / "runs", marked, forget(marked, ["valid-0"]))
    assert witness.steps == ()


def test_stretches_of_steps_read_as_ranges(tmp_path):
    text = str(Witness(tmp_path, ((1, 1), (3, 7))))
    assert text.endswith("in the steps 1, 3-7")


def test_a_run_resumes_on_a_dataset_that_follows_its_own_and_on_no_other(dataset):
    from distllm.train.resume import _check_dataset

    before = Manifest.load(dataset)
    assert _check_dataset(before.digest, before, str(dataset)) == []
    after = forget(dataset, ["train-0"]).manifest
    (note,) = _check_dataset(before.digest, after, str(dataset))
    assert before.digest in note
    with pytest.raises(ConfigError, match="the dataset changed") as error:
        _check_dataset(after.digest, before, str(dataset))
    assert error.value.where == f"data.out={dataset}"
