"""The samples of a configured task: which kind of split it opens, and that order and mixture fit it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from prepared import byte_tokenizer, write_sources

from distllm.config.huggingface import write_config
from distllm.config.problems import Problems
from distllm.config.resolve import DatasetFacts, resolve
from distllm.config.schema import Config, DataConfig, EngineConfig, ModelConfig, TaskConfig, TrainConfig
from distllm.config.shape import settle_shape
from distllm.data.examples import FRAMED_TASKS, ExampleSplit
from distllm.data.manifest import Manifest
from distllm.data.mixture import check_mixture, describe_order, open_stream, order_of, train_sources
from distllm.data.open import open_split
from distllm.data.stream import PackedSplit
from distllm.fsio import atomic_write_json
from distllm.observe.metrics import EvalRecord
from distllm.observe.names import eval_values

SEQ, ROWS = 64, 4
ENCODE = byte_tokenizer().encode
ANSWER = json.dumps([{"text": "cat", "start": 0}])
DOCUMENTS = {
    "text": (("text",), ENCODE("the cat sat on the mat " * 9)),
    "pairs": (("source", "target"), (ENCODE("a cat"), ENCODE("un chat"))),
    "qa": (("context", "question", "answers"), (ENCODE("cat on mat"), ENCODE("who"), ENCODE(ANSWER))),
    "preferences": (("prompt", "chosen", "rejected"), (ENCODE("hi"), ENCODE("yes"), ENCODE("no"))),
}
KINDS = {
    "causal_lm": "text",
    "seq2seq": "pairs",
    "instruct": "qa",
    "extractive_qa": "qa",
    "contrastive": "pairs",
    "dpo": "preferences",
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("open")
    for kind, (fields, document) in DOCUMENTS.items():
        sources = {name: {"train": [document] * 30, "valid": [document] * 2} for name in ("one", "two")}
        write_sources(root / kind, sources, shard_bytes=256, fields=dict.fromkeys(sources, fields))
    vocab_size = Manifest.load(root / kind).vocab_size
    (root / "trained").mkdir()
    name, content = write_config(settle_shape(ModelConfig(), vocab_size, SEQ))
    atomic_write_json(root / "trained" / "config.json", {"model_type": name, **content})
    return root


def config_of(datasets, task):
    family = "encoder" if task in ("extractive_qa", "contrastive") else "decoder"
    return Config(
        model=ModelConfig(family=family, init_from=str(datasets / "trained") if task == "dpo" else None),
        data=DataConfig(out=str(datasets / KINDS[task]), seq_len=SEQ),
        task=TaskConfig(name=task, stride=8),
        train=TrainConfig(tokens_per_step=ROWS * SEQ, max_steps=3),
        engine=EngineConfig(micro_batch_tokens=2 * SEQ),
    )


def resolved_of(datasets, config):
    manifest = Manifest.load(datasets / KINDS[config.task.name])
    facts = DatasetFacts(manifest.vocab_size, 10**6, 10**6, manifest.digest)
    return resolve(config, dataset=facts, starts_here=False), manifest


@pytest.mark.parametrize("task", KINDS)
def test_a_task_opens_its_kind_of_split_and_streams_it(datasets, task):
    config = config_of(datasets, task)
    resolved, manifest = resolved_of(datasets, config)
    split, stream = open_stream(resolved, 0, 1)
    assert isinstance(split, ExampleSplit if task in FRAMED_TASKS else PackedSplit)
    assert train_sources(manifest, config) == split.sources
    batches = stream.step(0)
    assert [batch.tokens_BT.shape for batch in batches] == [(2, SEQ)] * 2
    names, _, samples = stream.order.locate(np.arange(ROWS))
    expected = split.batch(split.numbers(names, samples), np.arange(ROWS))
    assert np.array_equal(np.concatenate([batch.tokens_BT for batch in batches]), expected.tokens_BT)
    stream.close()


@pytest.mark.parametrize("task", ["seq2seq", "extractive_qa"])
def test_a_mixture_of_examples_knows_its_epochs(datasets, task):
    config = config_of(datasets, task)
    resolved, manifest = resolved_of(datasets, config)
    problems = Problems()
    check_mixture(resolved, manifest, problems)
    assert not problems.found
    order = order_of(config, open_split(config, "train").sources)
    assert len(describe_order(order, 3 * ROWS)) == 2
    unfit = replace(config, task=replace(config.task, name="dpo"))
    check_mixture(replace(resolved, config=unfit), manifest, problems)
    assert "fields prompt, chosen, rejected" in problems.found[0].cause


def test_an_evaluation_shows_only_what_it_measured():
    record = EvalRecord(3, 9, 1.5, None, None, 2.0, {"one": 1.25, "two": 1.75})
    values = eval_values(record, "contrastive")
    assert values["eval/contrastive/loss"] == 1.5
    assert values["eval/contrastive/sources/one"] == 1.25
    assert not any(value is None for value in values.values())
    assert not [name for name in values if name.endswith(("perplexity", "bits_per_byte"))]
