"""Which checkpoints stay: rules on summaries, and the same rules on disk."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transactions import transaction

from distllm.checkpoint.format import step_path
from distllm.checkpoint.retention import Retention, Summary, doomed_of, kept, prune, summarise


def summaries(*items):
    """Newest first, from (step, valid loss or None, ephemeral)."""
    found = [Summary(step_path("d", step), step, ephemeral, loss) for step, loss, ephemeral in items]
    return sorted(found, key=lambda item: -item.step)


def ordinary(*steps):
    return summaries(*((step, None, False) for step in steps))


def test_the_newest_ordinary_ones_stay():
    assert kept(ordinary(1, 2, 3, 4), Retention(2)) == {4: "last", 3: "last"}
    assert kept([], Retention(2)) == {}


def test_the_first_at_or_after_each_multiple_stays_whatever_the_interval_was():
    found = kept(ordinary(30, 90, 130, 170, 230, 420, 450), Retention(1, every_steps=100))
    assert found == {450: "last", 420: "every", 230: "every", 130: "every"}


def test_the_lowest_validation_losses_stay_and_a_tie_goes_to_the_earlier():
    items = summaries((1, 3.0, False), (2, 2.0, False), (3, 2.0, False), (4, 2.5, False), (5, None, False))
    assert kept(items, Retention(1, best=2)) == {5: "last", 2: "best", 3: "best"}


def test_of_the_ephemeral_ones_only_the_newest_stays_and_only_while_nothing_is_newer():
    items = summaries((10, None, False), (11, None, True), (12, None, True))
    assert kept(items, Retention(3)) == {10: "last", 12: "newest"}
    assert kept([*ordinary(20), *items], Retention(1)) == {20: "last"}


@given(
    items=st.lists(
        st.tuples(st.integers(1, 60), st.none() | st.sampled_from([1.0, 2.0]), st.booleans()),
        unique_by=lambda item: item[0],
    ),
    retention=st.builds(Retention, st.integers(1, 3), st.none() | st.integers(1, 20), st.integers(0, 2)),
)
def test_pruning_again_changes_nothing_and_the_newest_always_stays(items, retention):
    found = summaries(*items)
    stays = kept(found, retention)
    assert kept([item for item in found if item.step in stays], retention).keys() == stays.keys()
    if found:
        assert found[0].step in stays
    ordinary_ones = sum(not item.ephemeral for item in found)
    assert sum(reason == "last" for reason in stays.values()) <= min(retention.last, ordinary_ones)


def save(directory, step, *, valid_loss=None, valid_step=None, ephemeral=False):
    facts = {} if valid_loss is None else {"valid_loss": valid_loss, "valid_step": valid_step or step}
    with transaction(directory, step) as files:
        files.write("model-00000.safetensors", b"weights")
        state = {"format": 1, "step": step, "ephemeral": ephemeral, "facts": facts}
        files.write("state.json", json.dumps(state).encode())


def steps(directory):
    return [item.step for item in summarise(directory)]


def test_the_rules_on_disk(tmp_path):
    save(tmp_path, 10, valid_loss=1.5)
    save(tmp_path, 20, valid_loss=1.0)
    save(tmp_path, 30, valid_loss=1.2, valid_step=25)  # measured elsewhere: says nothing of this one
    save(tmp_path, 35, ephemeral=True)
    save(tmp_path, 40, valid_loss=float("nan"))
    retention = Retention(1, every_steps=30, best=1)
    assert [path.name for path in doomed_of(tmp_path, retention)] == ["step-000000035", "step-000000010"]
    assert steps(tmp_path) == [40, 35, 30, 20, 10]
    prune(tmp_path, retention)
    assert steps(tmp_path) == [40, 30, 20]


@pytest.mark.parametrize("ruined", ["state.json", "COMMITTED"])
def test_the_last_whole_one_stays_though_no_rule_keeps_it(tmp_path, ruined):
    for step in (10, 11, 12):
        save(tmp_path, step)
    save(tmp_path, 13, ephemeral=True)
    for step in (12, 13):
        os.truncate(step_path(tmp_path, step) / ruined, 0)
    prune(tmp_path, Retention(1))
    assert 11 in steps(tmp_path)
    assert 10 not in steps(tmp_path)
