"""Cases in which deduplication could lose a text of which nothing else is a copy."""

import numpy as np
import pytest
from prepared import write_dataset

from distllm.config.schema_dedup import DedupConfig
from distllm.data.dedup import Decontaminator, Unit, decide, sign, stored_documents
from distllm.data.records import Document
from distllm.errors import DataError


def decisions_of(tmp_path, units, config):
    made = []
    for number, texts in enumerate(units):
        directory = tmp_path / f"unit{number}"
        directory.mkdir()
        made.append(Unit(sign([[Document.from_text(*each) for each in texts]], directory, config), "s"))
    return decide(made, config)


@pytest.mark.parametrize("other", ["a", "b", "c", "d", "e", "f"])
def test_a_document_that_went_takes_no_namesake_with_it(tmp_path, other):
    """Whichever copy stays, an id is only refused for the sake of a document that stays."""
    texts = [("id", "the same text"), (other, "the same text"), ("id", "another")]
    (decision,) = decisions_of(tmp_path, [texts], DedupConfig())
    gone = {row: rule for row, (rule, _) in decision.documents.items()}
    assert gone in ({0: "duplicate"}, {1: "duplicate", 2: "duplicate_id"})
    assert (2 in gone) == (0 not in gone)


def test_both_outcomes_of_the_namesake_occur(tmp_path):
    outcomes = set()
    for number, other in enumerate("abcdef"):
        root = tmp_path / str(number)
        root.mkdir()
        texts = [("id", "the same text"), (other, "the same text"), ("id", "another")]
        outcomes.add(tuple(decisions_of(root, [texts], DedupConfig())[0].documents))
    assert len(outcomes) == 2


def test_texts_without_words_are_not_alike(tmp_path):
    texts = [("a", "!!! ???"), ("b", "--- *** ###"), ("c", "..."), ("d", "...")]
    (decision,) = decisions_of(tmp_path, [texts], DedupConfig(near=True))
    assert [rule for rule, _ in decision.documents.values()] == ["duplicate"]
    assert set(decision.documents) < {2, 3}


def test_a_keeper_that_went_by_a_later_rule_is_not_named(tmp_path):
    """Of equal texts one stays until a longer text, nearly equal, takes it: that one is the keeper."""
    words = [f"word{number}" for number in range(300)]
    texts = [("x", " ".join(words)), ("y", " ".join(words)), ("z", " ".join([*words, "end"]))]
    (decision,) = decisions_of(tmp_path, [texts], DedupConfig(near=True))
    assert {keeper for _, keeper in decision.documents.values()} == {"z"}
    assert sorted(rule for rule, _ in decision.documents.values()) == ["duplicate", "near_duplicate"]


def test_keepers_are_named_across_units(tmp_path):
    same = [f"text {number} is long enough" for number in range(6)]
    units = [[(f"{unit}-{number}", text) for number, text in enumerate(same)] for unit in range(4)]
    decisions = decisions_of(tmp_path, units, DedupConfig())
    stays = {
        id_
        for texts, decision in zip(units, decisions, strict=True)
        for row, (id_, _) in enumerate(texts)
        if row not in decision.documents
    }
    assert len(stays) == 6
    for texts, decision in zip(units, decisions, strict=True):
        for row, (_, keeper) in decision.documents.items():
            assert keeper in stays
            assert keeper.split("-")[1] == texts[row][0].split("-")[1]


def test_nothing_to_decide(tmp_path):
    assert decide([], DedupConfig(near=True, pieces="lines")) == []
    (decision,) = decisions_of(tmp_path, [[]], DedupConfig(near=True, pieces="lines"))
    assert not decision.documents


def test_a_damaged_dataset_is_refused_as_a_thing_to_compare_with(tmp_path):
    write_dataset(tmp_path / "set", train=[[5] * 3000, [7] * 3000], valid=[[9] * 10])
    assert [document.id for document in stored_documents(tmp_path / "set")] == [
        "train-0",
        "train-1",
        "valid-0",
    ]
    (tar,) = (tmp_path / "set").glob("*/train/*.tar")
    content = np.fromfile(tar, dtype=np.uint8)
    content[content.tobytes().index(bytes([5, 0]) * 20) + 100] ^= 1
    content.tofile(tar)
    with pytest.raises(DataError, match=r"block 0 of tokens\.bin"):
        list(stored_documents(tmp_path / "set"))


def test_an_evaluation_set_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "set.txt"
    path.write_bytes(b"\xef\xbb\xbfthe first line of the set\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"line 2 of the evaluation set .* is not UTF-8") as raised:
        Decontaminator([str(path)], 13)(Document.from_text("d", "text"))
    assert raised.value.where == f"{path}:2"
    path.write_bytes(b"\xef\xbb\xbfthe first line of the set\n")
    spoiled = Decontaminator([str(path)], 13)(Document.from_text("d", "It is The First Line of the Set."))
    assert spoiled.rule == "contaminated"


def run_of_words(start, count):
    return " ".join(f"word{number}" for number in range(start, start + count))


def test_the_end_of_a_chain_stays_though_its_neighbour_goes(tmp_path):
    """a and b are alike, b and c too, a and c are not: b makes way for a, and takes c not with it."""
    texts = [("a", run_of_words(0, 300)), ("b", run_of_words(36, 290)), ("c", run_of_words(72, 280))]
    config = DedupConfig(near=True, ngram=1, bands=56, rows=4, near_similarity=0.75)
    for name, chosen, gone in (("abc", texts, {1: "a"}), ("bc", texts[1:], {1: "b"}), ("ac", texts[::2], {})):
        (tmp_path / name).mkdir()
        (decision,) = decisions_of(tmp_path / name, [chosen], config)
        assert {row: keeper for row, (_, keeper) in decision.documents.items()} == gone


def test_lines_of_documents_that_are_fixed_stay(tmp_path):
    line = "a line of more than forty characters, to be sure"
    units = []
    for name, texts in (("old", ["x" * 50, f"{line}\n{line}"]), ("new", [f"{line}\n{'y' * 900}"])):
        (tmp_path / name).mkdir()
        documents = [Document.from_text(f"{name}{i}", text) for i, text in enumerate(texts)]
        signed = sign([documents], tmp_path / name, DedupConfig(pieces="lines"))
        units.append(Unit(signed, name, fixed=name == "old"))
    old, new = decide(units, DedupConfig(pieces="lines"))
    assert (old.documents, old.pieces) == ({}, {})
    assert (new.documents, new.pieces) == ({}, {0: [0]})
