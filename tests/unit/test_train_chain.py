"""Two histories with equal chains did the same; where they part, it is said once."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distllm.observe.metrics import StepRecord
from distllm.train import chain as chains
from distllm.train.chain import Chain, next_link
from distllm.train.state import TrainState

BLANK = StepRecord(0, 0, 0.0, 0.0, 0.0, 0.0, None, 0.0, 0.0, 0, 0.0, 0, 1, "")


def take(chain, state, losses, digests=None):
    """Take a step for each loss; return what was reported and what the metrics would hold."""
    reports, records = [], []
    for loss in losses:
        state.step += 1
        digest = (digests or {}).get(state.step, f"b{state.step}")
        reports.append(chain.extend(digest, loss, 2 * loss))
        records.append(
            replace(
                BLANK,
                step=state.step,
                loss=loss,
                batch_digest=digest,
                chain=state.chain,
                rewinds=state.rewinds,
            )
        )
    return reports, records


def history(losses):
    state = TrainState()
    return take(Chain(state), state, losses)[1]


def resumed_after(records, step):
    """A run that goes on from the checkpoint of ``step``, beside the metrics of the one before."""
    state = TrainState(step=step, chain=records[step - 1].chain)
    return Chain(state, records), state


LOSSES = [5.0, 4.0, 3.0, 2.5, 2.0, 1.5]


def test_a_repeated_history_makes_the_same_links():
    records = history(LOSSES)
    chain, state = resumed_after(records, 2)
    assert chain.checkpoint_deviation() is None
    reports, again = take(chain, state, LOSSES[2:])
    assert reports == [None] * 4
    assert [record.chain for record in again] == [record.chain for record in records[2:]]
    assert len({record.chain for record in records}) == len(records)


@given(st.integers(1, 6), st.sampled_from(["loss", "batch", "order"]))
def test_one_other_bit_changes_this_link_and_all_after_it(step, what):
    records = history(LOSSES)
    losses, digests = list(LOSSES), {}
    if what == "loss":
        losses[step - 1] = math.nextafter(losses[step - 1], 9)
    else:
        digests[step] = "another"
    state = TrainState()
    reports, other = take(Chain(state, records), state, losses, digests)
    equal = [mine.chain == theirs.chain for mine, theirs in zip(other, records, strict=True)]
    assert equal == [number < step for number in range(1, 7)]
    assert [report is not None for report in reports] == [number == step for number in range(1, 7)]


def test_the_report_says_what_differs():
    records = history(LOSSES)
    chain, state = resumed_after(records, 2)
    (report, *_), _ = take(chain, state, [3.25])
    assert report == (
        "step 3 differs from when it was taken before: loss 3.25 instead of 3.0 on the same batch"
    )
    chain, state = resumed_after(records, 2)
    (report, *_), _ = take(chain, state, [3.0], {3: "b9"})
    assert report.endswith("loss 3.0 instead of 3.0 on another batch")


def test_a_checkpoint_of_another_history_is_noticed():
    records = history(LOSSES)
    assert Chain(TrainState(step=3, chain="0" * 16), records).checkpoint_deviation() == (
        "the checkpoint of step 3 does not continue the recorded metrics"
    )
    assert Chain(TrainState(step=7, chain="0" * 16), records).checkpoint_deviation() is None


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_skipped_step_has_a_link_too(number):
    state = TrainState(step=1)
    assert next_link(state, "b", number, number) == next_link(state, "b", number, number)
    assert next_link(state, "b", number, 1.0) != next_link(state, "b", 1.0, 1.0)


def test_attested_weights_enter_the_next_link_only():
    plain, attested = history(LOSSES), []
    state = TrainState()
    chain = Chain(state)
    for loss in LOSSES:
        attested += take(chain, state, [loss])[1]
        if state.step == 3:
            chain.attest("f00d")
    assert state.weights_fingerprint == ""
    equal = [mine.chain == theirs.chain for mine, theirs in zip(attested, plain, strict=True)]
    assert equal == [True] * 3 + [False] * 3


def test_nothing_is_expected_of_what_a_rewind_changed():
    state = TrainState()
    chain = Chain(state)
    take(chain, state, LOSSES)
    state.step, state.chain, state.rewinds = 2, history(LOSSES)[1].chain, 1
    chain.forget_after(3)
    reports, _ = take(chain, state, [3.0, 9.0, 9.0])
    assert reports == [None] * 3, "step 3 is repeated exactly, the others are free"
    state.step, state.chain = 2, history(LOSSES)[1].chain
    chain.forget_after(3)
    assert take(chain, state, [3.5])[0][0] is not None


def test_records_of_before_a_rewind_are_not_expected_after_it():
    records = history(LOSSES)
    state = TrainState(step=2, chain=records[1].chain, rewinds=1)
    assert take(Chain(state, records), state, [9.0])[0] == [None]


def test_steps_without_a_record_are_not_compared_and_old_links_are_let_go(monkeypatch):
    monkeypatch.setattr(chains, "_REMEMBERED", 3)
    records = history(LOSSES)
    chain, state = resumed_after(records[:2] + records[4:], 2)
    assert take(chain, state, [9.0, 9.0, 2.0])[0][:2] == [None, None]
    assert sorted(chain._known) == [3, 4, 5]
