import pytest

from distllm.errors import ConfigError
from distllm.registry import Registry, did_you_mean, edit_distance, suggest


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("", "", 0),
        ("adamw", "adamw", 0),
        ("", "abc", 3),
        ("adam", "adamw", 1),
        ("adamv", "adamw", 1),
        ("adawm", "adamw", 1),
        ("kitten", "sitting", 3),
        # a pair that is swapped is not edited again: the unrestricted distance would be 2
        ("ca", "abc", 3),
    ],
)
def test_known_distances(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("adamv", "adamw"),
        ("ADAMW", "adamw"),
        ("aadmw", "adamw"),
        ("sdg", "sgd"),
        ("l", "lr"),
        ("optim.wieght_decay", "optim.weight_decay"),
    ],
)
def test_the_closest_candidate_is_suggested(typo, meant):
    assert suggest(typo, ["lion", "adamw", "sgd", "lr", "optim.weight_decay", "optim.beta1"]) == meant


@pytest.mark.parametrize("typo", ["muon", "xyz", "adam-with-decay", ""])
def test_nothing_is_suggested_for_what_resembles_nothing(typo):
    assert suggest(typo, ["adamw", "lion", "sgd"]) is None


def test_a_third_of_the_name_may_be_wrong_and_no_more():
    assert suggest("abcdXX", ["abcdef"]) == "abcdef"


def test_a_path_is_known_by_its_last_parts():
    paths = ["model.dropout", "model.lora.dropout", "optim.lr", "seed"]
    assert did_you_mean("lr", paths) == "did you mean 'optim.lr'?"
    assert did_you_mean("lora.dropout", paths) == "did you mean 'model.lora.dropout'?"
    assert did_you_mean("dropout", paths) == "use one of: model.dropout, model.lora.dropout"
    assert suggest("abcXXX", ["abcdef"]) is None


def test_among_equals_the_first_by_name_wins_and_a_closer_one_beats_it():
    assert suggest("beta", ["beta2", "beta1"]) == "beta1"
    assert suggest("beta2x", ["beta1", "beta2"]) == "beta2"


def test_the_remedy_is_one_name_or_all_of_them():
    assert did_you_mean("adamv", ["sgd", "adamw"]) == "did you mean 'adamw'?"
    assert did_you_mean("nonsense", ["sgd", "adamw"]) == "use one of: adamw, sgd"
    assert did_you_mean("lrr", ["seed", "optim.lr", "model.dropout"]) == "did you mean 'optim.lr'?"
    many = [f"{group}.key{number}" for group in ("a", "b") for number in range(30)]
    assert did_you_mean("nonsense", many) == "use one of: a, b"
    assert did_you_mean("nonsense", map(str, range(99))) == "none of the 99 names is like it"
    assert did_you_mean("adamv", iter(["sgd", "adamw"])) == "did you mean 'adamw'?"


def test_a_registry_finds_its_entries_and_lists_their_names():
    table = Registry("optimizer", "optim.name", {"sgd": 1, "adamw": 2})
    assert (table["adamw"], table["sgd"]) == (2, 1)
    assert table.names() == ["adamw", "sgd"]


def test_a_registry_does_not_follow_the_table_it_was_made_from():
    entries = {"sgd": 1}
    table = Registry("optimizer", "optim.name", entries)
    entries["adamw"] = 2
    assert table.names() == ["sgd"]


def test_an_unknown_entry_is_a_configuration_error_with_the_closest_name():
    with pytest.raises(ConfigError) as caught:
        Registry("optimizer", "optim.name", {"sgd": 1, "adamw": 2})["adamv"]
    assert caught.value.cause == "unknown optimizer 'adamv'"
    assert caught.value.where == "optim.name"
    assert caught.value.remedy == "did you mean 'adamw'?"
