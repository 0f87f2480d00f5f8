"""When a job script leaves nodes behind, queues again on request, or runs nothing at all."""

import json

import pytest
from job_script import Job

from distllm.cluster.control import REQUEUE
from distllm.cluster.history import History

pytestmark = pytest.mark.slow


@pytest.fixture
def job(tmp_path, monkeypatch):
    return Job(tmp_path, monkeypatch)


def test_a_run_that_is_asked_to_queue_again_saves_first(job):
    job.plan({"event": ["stopped", {"step": 4, "why": f"asked to stop: {REQUEUE}: distllm requeue, by me"}]})
    _, told = job.run()
    assert "again: asked to stop: to queue again" in told
    assert job.requeued == ["12"]


def test_a_node_that_is_unwanted_by_now_is_left_by_a_new_job(job):
    job.plan({"event": ["stopped", {"step": 4, "why": f"asked to stop: {REQUEUE}: x"}],
              "excludes": {"n2": "distllm requeue, by me"}})  # fmt: skip
    code, told = job.run()
    assert code == 75, told
    assert job.requeued == []
    assert "--exclude=n2" in job.programs.calls("sbatch")[0]


def test_a_node_on_which_ranks_are_killed_is_excluded_after_so_many_starts(job):
    """Rank 1, which is on n2, leaves no word; the other one does."""
    job.plan({"saves": [4], "code": 137, "exits": {"0": 70}}, {"saves": [8], "code": 137, "exits": {"0": 70}})
    _, told = job.run()
    assert "1 starts have failed on n2" in told
    assert job.requeued == ["12"]
    code, told = job.run()
    assert code == 75, told
    assert History(job.run_dir).excluded() == {"n2": "2 starts of the run have failed there"}
    assert "--exclude=n2" in job.programs.calls("sbatch")[0]
    assert job.requeued == ["12"], "a new job takes over, for this one would get the node again"


def test_an_image_that_was_replaced_is_not_run(job, tmp_path):
    facts = json.loads((job.submission.path / "submission.json").read_text())
    facts["image"] = {"file": str(tmp_path / "gone.sif"), "bytes": 1, "changed": 1, "digest": "0" * 32}
    (job.submission.path / "submission.json").write_text(json.dumps(facts))
    code, told = job.run()
    assert code == 64
    assert "is not the one that was submitted" in told
    assert job.programs.calls("srun") == []


def test_what_libraries_are_told_stands_in_the_log(job):
    job.plan({"event": ["done", {"step": 8}]})
    _, told = job.run(NCCL_DEBUG="WARN", NCCL_TOKEN="abcdef0123456789")
    assert "NCCL_DEBUG=WARN" in told
    assert "abcdef0123456789" not in told
