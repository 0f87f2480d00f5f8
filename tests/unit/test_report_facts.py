import json

import pytest
import run_directory

from distllm.errors import ConfigError, DataError
from distllm.observe.ledger import read_events
from distllm.report.facts import MAX_BATCH_CHARS, columns, gather, to_script


def no_text(step, first):
    return f"batch of step {step} from sample {first}"


@pytest.fixture
def storm(tmp_path):
    return run_directory.write_run(tmp_path, "storm")


def test_a_step_taken_twice_appears_once_and_as_it_counted(storm):
    facts = gather(storm, no_text)
    assert [row["step"] for row in facts.steps] == list(range(1, 41))
    assert {row["attempt"] for row in facts.steps if row["step"] in (21, 22, 23)} == {2}
    assert facts.status == "done"
    assert [(one.number, one.ending) for one in facts.tries] == [(1, "killed"), (2, "done")]


def test_a_skipped_step_carries_its_batch(storm):
    (spike,) = gather(storm, no_text).spikes
    assert (spike.step, spike.reason, spike.ranks) == (14, "non_finite", [1])
    assert spike.text == "batch of step 14 from sample 208"


def test_a_batch_that_cannot_be_shown_is_no_end_of_the_report(storm):
    def gone(step, first):
        raise ConfigError("the dataset is gone")

    assert gather(storm, gone).spikes[0].text == "the batch cannot be shown: the dataset is gone"


def test_a_long_batch_is_cut_and_says_so(storm):
    (spike,) = gather(storm, lambda step, first: "x" * (MAX_BATCH_CHARS + 5)).spikes
    assert spike.text.endswith("… 5 more characters")


def test_numbers_that_are_not_finite_are_gaps(storm):
    drawn = columns(gather(storm, no_text).steps)
    assert drawn["loss"][13] is None
    assert drawn["skipped"] == [int(step == 14) for step in range(1, 41)]
    assert drawn["perplexity"][0] == pytest.approx(2.718281828 ** drawn["loss"][0])
    assert "batch_digest" not in drawn


def test_a_long_run_is_thinned_and_keeps_its_extremes():
    rows = [{"step": step, "loss": 1.0, "skipped": 0} for step in range(100_000)]
    rows[54_321]["loss"], rows[77_777]["skipped"], rows[77_777]["loss"] = 99.0, 1, "nan"
    drawn = columns(rows, limit=1500)
    assert len(drawn["step"]) <= 1510
    assert max(value for value in drawn["loss"] if value is not None) == 99.0
    assert drawn["step"][drawn["skipped"].index(1)] == 77_777
    assert (drawn["step"][0], drawn["step"][-1]) == (0, 99_999)


@pytest.mark.parametrize(
    ("last", "status"), [("stopped", "stopped"), ("oom", "failed"), ("saved", "unfinished")]
)
def test_status_follows_the_last_word(storm, last, status):
    path = storm / "ledger.jsonl"
    path.write_text(path.read_text() + json.dumps({"time": 9e9, "attempt": 3, "kind": last}) + "\n")
    assert gather(storm, no_text).status == status
    assert read_events(path)[-1].kind == last


def test_a_run_without_a_step_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "attempt", "attempt": 1, "time": 1.0}\n')
    with pytest.raises(DataError, match="holds no step"):
        gather(tmp_path, no_text)
    with pytest.raises(DataError, match="does not exist"):
        gather(tmp_path / "nowhere", no_text)


def test_no_text_can_end_the_script_element():
    value = {"text": "</script><!-- & \u2028"}
    written = to_script(value)
    assert "<" not in written
    assert json.loads(written) == value
