"""The harness measures our model and the exported folder of it alike, on a task of local files."""

import json
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")
from distllm.config.schema_model import ModelConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.config.shape import settle_shape
from distllm.data.tokenizer import Tokenizer
from distllm.errors import ConfigError
from distllm.evaluate.harness import HarnessModel, measure_harness
from distllm.export.hf import export_hf
from distllm.models.init import build_model

pytestmark = pytest.mark.slow
WORDS = ("cat", "dog", "mat", "sat", "on", "the", "a")
TASK = """
task: local_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
  cache_dir: {cache}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
"""
TEXTS = """
task: local_texts
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
  cache_dir: {cache}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{said}}}}"
generation_kwargs:
  until: ["zz"]
  max_gen_toks: 8
metric_list:
  - metric: bleu
  - metric: chrf
"""


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """A model of random weights, its folder, and a task."""
    root = tmp_path_factory.mktemp("harness")
    tokenizer = Tokenizer.train(["the cat sat on a mat, the dog"] * 4, TokenizerConfig(vocab_size=270))
    config = ModelConfig(hidden_size=32, num_layers=2, num_heads=4, init_std=0.3)
    model = build_model(settle_shape(config, tokenizer.vocab_size, 24), seed=3).eval()
    export_hf(model.state_dict(), model.shape, tokenizer, root / "hf", {})
    generator = torch.Generator().manual_seed(0)

    def words(count):
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (count,), generator=generator))

    documents = [
        {"question": words(3 + n), "choices": [words(1), words(2), words(3)], "answer": n % 3}
        for n in range(24)
    ]
    greedy = HarnessModel(model, tokenizer).generate_until(
        asked(*((document["question"], {"max_gen_toks": 8}) for document in documents))
    )
    for number, (document, said) in enumerate(zip(documents, greedy, strict=True)):
        document["said"] = said if number % 2 else words(5)  # right half of the time
    file = root / "docs.jsonl"
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))
    folder = root / "tasks"
    folder.mkdir()
    for name, text in (("choice", TASK), ("texts", TEXTS)):
        (folder / f"local_{name}.yaml").write_text(text.format(file=file, cache=root / "cache"))
    return model, tokenizer, root


@pytest.fixture(scope="module")
def theirs(subject):
    from lm_eval.models.huggingface import HFLM

    folder = str(subject[2] / "hf")
    return HFLM(pretrained=folder, tokenizer=folder, device="cpu", batch_size=4, max_length=24)


def test_accuracy_and_bleu_are_those_of_the_exported_folder(subject, theirs):
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    model, tokenizer, root = subject
    tasks = ["local_choice", "local_texts"]
    ours = measure_harness(model, tokenizer, tasks, root / "tasks", None)
    manager = TaskManager(include_path=str(root / "tasks"))
    other = simple_evaluate(theirs, tasks=tasks, task_manager=manager, bootstrap_iters=0)["results"]
    for task, measures in (("local_choice", ("acc", "acc_norm")), ("local_texts", ("bleu", "chrf"))):
        for measure in measures:
            assert ours[task][measure] == other[task][f"{measure},none"], measure
    assert 0 < ours["local_choice"]["acc"] < 1
    assert 1 < ours["local_texts"]["bleu"] < 99


def asked(*arguments):
    return [SimpleNamespace(args=one) for one in arguments]


def test_scores_and_texts_are_those_of_the_exported_folder(subject, theirs):
    ours = HarnessModel(subject[0], subject[1], batch_size=3)
    pairs = asked(
        ("the cat ", "sat on"),
        ("", "a dog"),
        ("the", " mat"),
        ("a mat " * 20, "on the mat"),
        ("dog", " a " * 6),
    )
    for (mine, sure), (other, also) in zip(
        ours.loglikelihood(pairs), theirs.loglikelihood(pairs), strict=True
    ):
        assert mine == pytest.approx(other, abs=1e-3)
        assert sure == also
    texts = asked(("the cat sat on a mat " * 9,), ("dog",))
    mine, other = ours.loglikelihood_rolling(texts), theirs.loglikelihood_rolling(texts)
    assert mine == pytest.approx(other, abs=1e-2)
    until = {"until": ["zz"], "max_gen_toks": 6, "do_sample": False}
    prompts = asked(*((text, until) for text in ("the cat sat", "a dog on")))
    assert ours.generate_until(prompts) == theirs.generate_until(prompts)


def test_a_text_ends_at_the_first_stop(subject):
    ours = HarnessModel(subject[0], subject[1])
    (whole,) = ours.generate_until(asked(("the cat", {"max_gen_toks": 6})))
    (cut,) = ours.generate_until(asked(("the cat", {"max_gen_toks": 6, "until": [whole[2], "zz"]})))
    assert cut == whole[: whole.index(whole[2])]


def test_what_would_run_code_or_is_unknown_is_refused(subject, tmp_path):
    model, tokenizer, root = subject
    with pytest.raises(ConfigError, match="no task nothing"):
        measure_harness(model, tokenizer, ["nothing"], root / "tasks", None)
    (tmp_path / "bad.yaml").write_text("task: bad\nprocess_docs: !function code.run\n")
    with pytest.raises(ConfigError, match="names Python code"):
        measure_harness(model, tokenizer, ["bad"], tmp_path, None)
    encoder = build_model(settle_shape(ModelConfig(family="encoder", hidden_size=32, num_heads=4), 64, 8), 0)
    with pytest.raises(ConfigError, match="of family encoder"):
        HarnessModel(encoder, tokenizer)
