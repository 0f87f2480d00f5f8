"""Canaries: planted as often as asked in the training split alone, and exposed as the paper counts it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from distllm.config.checks_prepare import check_prepare
from distllm.config.problems import Problems
from distllm.config.schema import Config, DataConfig
from distllm.config.schema_clean import CleanConfig
from distllm.config.schema_dedup import DedupConfig
from distllm.config.schema_privacy import CanaryConfig, PrivacyConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.manifest import Manifest
from distllm.data.pipeline import pipeline_identity, prepare
from distllm.data.privacy.canaries import CANARIES_FILE, Canaries
from distllm.data.shards import load_index, map_shard, merge, shard_ids, verify
from distllm.data.tokenizer import Tokenizer
from distllm.dist.topology import Topology
from distllm.errors import DataError
from distllm.evaluate.canaries import CanaryWatch

PLANTED = CanaryConfig(repeats=(0, 3, 8, 3), text="The code of the door is {}", space=60)


def config_of(root, canaries=PLANTED, **more):
    return Config(
        seed=more.pop("seed", 0),
        clean=CleanConfig(min_chars=8),
        dedup=DedupConfig(documents=True),
        privacy=PrivacyConfig(scrub=("phone", "national_id"), canaries=canaries),
        data=DataConfig(source="text", paths=(f"{root}/corpus",), out=f"{root}/{more.pop('out', 'out')}",
                        valid_fraction=0.2, work=f"{root}/work"),
        tokenizer=TokenizerConfig(vocab_size=300),
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("canaries")
    (root / "corpus").mkdir()
    for number in range(40):
        text = f"Text {number} tells of {number * 37} birds and of the house behind river {number % 7}.\n"
        (root / "corpus" / f"{number:03d}.txt").write_text(text * 3)
    prepare(config_of(root))
    return root


def documents(directory, split):
    """The texts of a split by name."""
    tokenizer, manifest = Tokenizer.load(directory), Manifest.load(directory)
    found = {}
    for shard in load_index(directory)["text"][split]:
        ids_M, ends_N = map_shard(directory, shard, np.dtype(manifest.token_dtype))
        starts = [0, *ends_N.tolist()]
        for name, start, end in zip(shard_ids(directory, shard), starts, ends_N.tolist(), strict=False):
            found[name] = tokenizer.decode(ids_M[start + 1 : end].tolist())
    return found


def test_copies_are_planted_in_the_training_split_alone(root):
    train, valid = (documents(root / "out", split) for split in ("train", "valid"))
    known = json.loads((root / "out" / CANARIES_FILE).read_text())
    assert len(train) + len(valid) == 40 + 14
    assert not [name for name in valid if "canary" in name]
    for planted, copies in zip(known["planted"], PLANTED.repeats, strict=True):
        assert planted["copies"] == copies == sum(text == planted["text"] for text in train.values())
        assert {name for name, text in train.items() if text == planted["text"]} == set(planted["documents"])
        assert Tokenizer.load(root / "out").encode(planted["text"]) == planted["ids"]
    # among the others, not behind them
    places = [place for place, name in enumerate(train) if "canary" in name]
    assert min(places) < 15
    assert max(places) > 25


def test_a_merged_dataset_says_what_was_planted_in_all_of_it(root, tmp_path):
    tokenizer = TokenizerConfig(path=str(root / "out"))
    plain = replace(config_of(root, CanaryConfig(), out="bare"), tokenizer=tokenizer)
    more = replace(
        config_of(root, replace(PLANTED, repeats=(2, 0, 0, 0, 4)), out="more"), tokenizer=tokenizer
    )
    prepare(plain)
    prepare(more)
    merge([root / "bare", root / "out", root / "more"], tmp_path / "merged")
    known = json.loads((tmp_path / "merged" / CANARIES_FILE).read_text())
    assert [entry["copies"] for entry in known["planted"]] == [2, 3, 8, 3, 4]
    loaded = Canaries.load(tmp_path / "merged")
    assert loaded.planted == dict(enumerate([2, 3, 8, 3, 4]))
    assert loaded.texts == Canaries.load(root / "out").texts
    for entry in known["planted"]:
        assert len(entry["documents"]) == entry["copies"]
    assert CANARIES_FILE in verify(tmp_path / "merged").files
    merge([root / "bare"], tmp_path / "none")
    assert not (tmp_path / "none" / CANARIES_FILE).exists()
    other = replace(config_of(root, seed=1, out="unlike"), tokenizer=tokenizer)
    prepare(other)
    with pytest.raises(DataError, match="canaries of different lists"):
        merge([root / "out", root / "unlike"], tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_the_manifest_proves_them_and_another_choice_is_another_dataset(root):
    manifest = Manifest.load(root / "out")
    assert CANARIES_FILE in manifest.files
    assert manifest.pipeline["privacy.canaries"]["repeats"] == [0, 3, 8, 3]
    again = prepare(config_of(root, out="again"))
    assert again.digest == manifest.digest
    other = prepare(config_of(root, CanaryConfig(repeats=(1,), space=60), out="other"))
    assert other.digest != manifest.digest
    assert other.splits["train"].documents == manifest.splits["train"].documents - 13
    assert other.tokenizer_fingerprint == manifest.tokenizer_fingerprint  # it has seen none of them


def test_without_canaries_nothing_is_written_or_asked(root):
    plain = config_of(root, CanaryConfig(), out="plain")
    assert "privacy.canaries" not in pipeline_identity(plain)
    assert CANARIES_FILE not in prepare(plain).files
    assert Canaries.load(root / "plain") is None


def test_the_seed_decides_what_they_say_and_all_differ():
    first, again, other = (Canaries.draw(PLANTED, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first.texts)) == 60
    assert all(text.removeprefix("The code of the door is ").isdigit() for text in first.texts)


class Knows(nn.Module):
    """Gives the ids of some texts more likelihood than others: the more, the larger their share."""

    def __init__(self, tokenizer, shares):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.eot, self.vocab = tokenizer.eot_id, tokenizer.vocab_size
        self.known = [(tokenizer.encode(text), share) for text, share in shares.items()]

    def forward(self, tokens_BT, positions_BT):
        assert (tokens_BT[:, 0] == self.eot).all()
        assert (positions_BT == torch.arange(tokens_BT.shape[1])).all()
        logits = torch.zeros(*tokens_BT.shape, self.vocab)
        for row, tokens in enumerate(tokens_BT.tolist()):
            for ids, share in self.known:
                for place in range(len(ids)):
                    if tokens[1 : place + 1] == ids[:place]:
                        logits[row, place, ids[place]] += share
        return logits


def test_exposure_counts_how_many_are_at_least_as_likely(root):
    canaries, tokenizer = Canaries.load(root / "out"), Tokenizer.load(root / "out")
    texts = canaries.texts
    model = Knows(tokenizer, {texts[2]: 3.0, texts[40]: 2.0, texts[1]: 1.0})
    watch = CanaryWatch(canaries, tokenizer, Topology.single())
    nll_N = watch._nll(model, lambda: None)
    assert np.argsort(nll_N, kind="stable")[:2].tolist() == [2, 40]
    rank = [1 + sum(nll_N < nll_N[number]) + sum(nll_N == nll_N[number]) - 1 for number in range(4)]
    found = watch.exposure(model)
    assert list(found) == ["x0", "x3", "x8"]
    assert found["x8"] == pytest.approx(math.log2(60))
    assert found["x0"] == pytest.approx(math.log2(60 / rank[0]))
    assert found["x3"] == pytest.approx((math.log2(60 / rank[1]) + math.log2(60 / rank[3])) / 2)
    assert model.training  # as it was


def test_a_model_that_knows_nothing_exposes_nothing(root):
    tokenizer = Tokenizer.load(root / "out")
    watch = CanaryWatch(Canaries.load(root / "out"), tokenizer, Topology.single())
    by_length = watch.exposure(Knows(tokenizer, {}))
    lengths = [len(tokenizer.encode(text)) for text in Canaries.load(root / "out").texts]
    expected = math.log2(60 / sum(length <= lengths[2] for length in lengths))
    assert by_length["x8"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("canaries", "source", "words"),
    [
        (CanaryConfig(repeats=(1,)), "pairs", "plain texts"),
        (CanaryConfig(repeats=(1,), text="no place"), "text", "one place for its digits"),
        (
            CanaryConfig(repeats=(1, 1, 1), space=2),
            "text",
            "3 canaries cannot be planted",
        ),
    ],
)
def test_what_cannot_be_planted_is_refused(canaries, source, words):
    problems = Problems()
    data = DataConfig(source=source, paths=("a",), fields=("source", "target") if source == "pairs" else ())
    check_prepare(Config(privacy=PrivacyConfig(canaries=canaries), data=data), problems)
    assert any(words in problem.cause for problem in problems.found)
