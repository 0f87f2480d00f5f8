"""Bytes of text where ids have none: forgetting counts decoded text, perplexity asks the manifest."""

from types import SimpleNamespace

import pytest
import torch
from prepared import byte_tokenizer, write_dataset

from distllm.data.manifest import Manifest
from distllm.data.shards.forget import forget
from distllm.data.stream import PackedSplit
from distllm.data.tokenizer import Tokenizer
from distllm.dist.topology import Topology
from distllm.evaluate.perplexity import evaluate_perplexity
from distllm.tasks.causal_lm import CausalLM

TEXTS = ["a first document", "zwei ä ö ü", "the third"]


@pytest.fixture
def dataset(tmp_path):
    write_dataset(tmp_path, train=[byte_tokenizer().encode(text) for text in TEXTS])
    return tmp_path


@pytest.mark.parametrize("byte_level", [True, False])
def test_forgetting_takes_away_the_bytes_of_the_text(dataset, monkeypatch, byte_level):
    before = Manifest.load(dataset).splits["train"].text_bytes
    if not byte_level:
        monkeypatch.setattr(Tokenizer, "token_byte_lengths", lambda _: None)
    forget(dataset, ["train-1"])
    assert before - Manifest.load(dataset).splits["train"].text_bytes == len(TEXTS[1].encode())


def test_bits_per_byte_come_from_the_manifest_where_ids_have_no_bytes(dataset):
    split = PackedSplit(dataset, "train", 4)
    record = Manifest.load(dataset).splits["train"]
    task = CausalLM(258, mask_documents=True)
    task.loss_sum = lambda model, batch: torch.tensor(1.0)
    results = [
        evaluate_perplexity(
            torch.nn.Linear(1, 1),
            task,
            split,
            tokenizer,
            Topology.single(),
            micro_batch_size=2,
            max_tokens=None,
        )
        for tokenizer in (SimpleNamespace(token_byte_lengths=lambda: None), byte_tokenizer())
    ]
    assert results[0].tokens == results[1].tokens
    assert results[0].text_bytes == round(results[0].tokens * record.text_bytes / record.tokens)
    assert abs(results[0].text_bytes - results[1].text_bytes) <= 3  # one EOT more or less
