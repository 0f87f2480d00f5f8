"""From files to a measured model with the commands a user types, for tasks beyond the next token."""

import json

import pytest
import tiny
from wordpiece import write_wordpiece

pytestmark = [pytest.mark.dist, pytest.mark.slow]
ANIMALS = ("cat", "dog", "cow", "hen", "fox", "bat", "ant", "bee", "owl", "rat")


def write_pairs(path):
    lines = [
        {"source": f"the {a} sees the {b} {n}", "target": f"le {b} voit le {a} {n}"}
        for a in ANIMALS for b in ANIMALS for n in range(3)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_questions(path):
    lines = []
    for number, animal in enumerate(ANIMALS * 12):
        context = f"In house {number} there lives a {animal} and nobody else at all."
        answer = {"text": animal, "answer_start": context.index(animal)}
        lines.append({"context": context, "question": f"Who lives in house {number}?", "answers": [answer]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


CASES = {
    "seq2seq": (write_pairs, "pairs", "encoder_decoder", ["cluster.procs_per_node=2", "engine=zero3"], "bleu "),
    "contrastive": (write_pairs, "pairs", "encoder", ["cluster.procs_per_node=2", "engine=zero2"], "ndcg@10 "),
    "extractive_qa": (write_questions, "qa", "encoder", ["optim=lion", "engine=zero1", "tokenizer.path={root}/bert"], "exact_match "),
}


@pytest.mark.parametrize("task", CASES)
def test_prepare_train_resume_inspect_evaluate(tmp_path, task):
    write, data, family, more, measure = CASES[task]
    write(tmp_path / "raw.jsonl")
    write_wordpiece(tmp_path / "bert")
    words = tiny.overrides(
        tmp_path, f"data={data}", f"data.paths=[{tmp_path}/raw.jsonl]", f"data.out={tmp_path}/set",
        "clean.min_chars=1", f"task={task}", "task.stride=16", f"model.family={family}", "data.seq_len=64",
        "cluster.procs_per_node=1", *(word.format(root=tmp_path) for word in more),
    )  # fmt: skip
    done = tiny.distllm("prepare", *words)
    assert done.returncode == 0, done.stderr
    for stop in ("train.stop_at_step=4", "train.stop_at_step=8"):
        done = tiny.distllm("train", *words, stop)
        assert done.returncode == 0, done.stderr
    for rank in range(2 if task == "contrastive" else 1):
        log = (tmp_path / "runs" / "tiny" / "logs" / f"rank-{rank:05d}.log").read_text()
        assert [line.split(" attempt ")[1][0] for line in log.splitlines() if " attempt " in line] == ["1", "2"]
        assert ("grad norm" in log) == (rank == 0)
    steps = tiny.steps(tmp_path)
    assert sorted(steps) == list(range(1, 9))
    assert steps[8]["loss"] < steps[1]["loss"]
    shown = tiny.distllm("inspect", "run=tiny", "step=2", "rank=0", f"runs_dir={tmp_path}/runs")
    assert shown.returncode == 0, shown.stderr
    assert ("the " in shown.stdout) if data == "pairs" else ("who lives in house" in shown.stdout)
    measured = tiny.distllm("evaluate", "run=tiny", f"runs_dir={tmp_path}/runs", "examples=10", "samples=1")
    assert measured.returncode == 0, measured.stderr
    assert "step 8: validation loss" in measured.stdout
    assert measure in measured.stdout
    asked, given, right = (measured.stdout.index(f"  {word}\n    ") for word in ("asked", "given", "right"))
    assert asked < given < right
    assert measured.stdout.count("  asked\n") == 1
    if task == "contrastive":
        search_with_run(tmp_path)
    if task == "extractive_qa":
        answer_with_run(tmp_path)


def search_with_run(root):
    """The run's encoder makes the same index on one rank and on two, and the index finds it again."""
    from distllm.cli import main

    (root / "texts").mkdir()
    for name in ("hamster", "horse", "lizard"):
        (root / "texts" / f"{name}.txt").write_text(f"Here lives a {name}.\n" * 40)
    words = (f"corpus={root}/texts", "run=tiny", f"runs_dir={root}/runs", "passage_tokens=32")
    done = tiny.distllm("search", "build", *words, "ranks=2", f"out={root}/two")
    assert done.returncode == 0, done.stderr
    assert main(["search", "build", *words, "ranks=1", f"out={root}/one"]) == 0
    files = sorted(path.name for path in (root / "one").iterdir())
    assert files == ["manifest.json", "passages.jsonl", "vectors.faiss", "words.safetensors"]
    for name in files:
        assert (root / "one" / name).read_bytes() == (root / "two" / name).read_bytes(), name
    assert json.loads((root / "one" / "manifest.json").read_text())["model"]["step"] == 8
    ask = ["search", "query", f"index={root}/two", "text=the lizard"]
    assert main(ask) == 0
    assert main([*ask, "run=tiny", f"runs_dir={root}/runs", "step=8"]) == 0
    assert main([*ask, "run=tiny", f"runs_dir={root}/runs", "step=6"]) == 64


def answer_with_run(root):
    """A served run of extractive_qa answers from the text it is given."""
    from distllm.commands.serve import Options, _backend

    backend = _backend(Options(run="tiny", runs_dir=str(root / "runs")))
    assert backend.abilities == ["answer"]
    text = "In house 3 there lives a hamster."
    answer, _ = backend.extractor.answer("Who lives in house 3?", [{"title": "t", "passage": text}])
    assert answer in text
