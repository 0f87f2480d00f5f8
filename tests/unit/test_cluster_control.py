"""Requests by file, and the fence between the starts of one job."""

import json
import os

import pytest

from distllm.cluster.control import Control
from distllm.cluster.fence import Fence
from distllm.cluster.lease import OWNER_FILE
from distllm.errors import RunDirectoryBusy
from distllm.train import signals
from distllm.train.run_directory import RunDirectory
from distllm.train.signals import StopRequest


def test_a_request_is_kept_until_it_is_forgotten(tmp_path):
    control = Control(tmp_path / "run")
    assert control.asked("stop") is None
    control.ask("stop", "the night is over", again=True)
    request = control.asked("stop")
    assert (request.kind, request.why, request.again) == ("stop", "the night is over", True)
    assert control.asked("save") is None
    control.forget("stop")
    control.forget("stop")
    assert control.asked("stop") is None


@pytest.mark.parametrize("content", ["", "not json", "[]"])
def test_a_touched_file_is_a_request_that_ends_the_run(tmp_path, content):
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "stop").write_text(content)
    request = Control(tmp_path).asked("stop")
    assert request.again is False
    assert "control/stop exists" in request.why


def test_forget_all(tmp_path):
    control = Control(tmp_path)
    for wish in ("stop", "save", "cancel"):
        control.ask(wish, "now")
    control.forget_all()
    assert [control.asked(wish) for wish in ("stop", "save", "cancel")] == [None] * 3


def test_a_rank_sees_requests_and_forgets_what_it_obeyed(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    stop, control = StopRequest(), Control(tmp_path)
    assert not stop.requested
    stop.watch(tmp_path)
    control.ask("save", "before the party")
    assert stop.save_requested
    assert not stop.requested
    control.ask("stop", "by hand")
    assert not stop.requested, "it looks once a second"
    now[0] += 1.5
    assert stop.requested
    assert stop.why == "asked to stop: by hand"
    stop.clear_save()
    stop.clear_stop()
    assert control.asked("save") is None
    assert control.asked("stop") is None
    now[0] += 1.5
    assert (stop.requested, stop.save_requested) == (False, False)


def test_fence_of_a_job_and_of_torchrun():
    assert Fence.read({}) is None
    assert Fence.read({"DISTLLM_FENCE": "job@x"}) is None
    assert Fence.read({"DISTLLM_FENCE": "/runs/a@b@3"}) == Fence("/runs/a@b", 3)
    torchrun = {"TORCHELASTIC_RUN_ID": "42", "TORCHELASTIC_RESTART_COUNT": "1"}
    assert Fence.read(torchrun) == Fence("torchrun 42", 1)
    assert Fence.read(torchrun | {"TORCHELASTIC_RUN_ID": "none"}) is None


@pytest.mark.parametrize(
    ("owner", "gives_way"),
    [("job@1", True), ("job@2", True), ("job@3", False), ("other@1", False), (None, False), ("job", False)],
)
def test_only_an_earlier_start_of_the_same_job_gives_way(owner, gives_way):
    assert Fence("job", 2).supersedes(owner) is gives_way


def test_a_later_start_takes_the_directory_of_a_node_that_cannot_be_asked(tmp_path, monkeypatch):
    lost = {"host": "n7", "pid": 1, "started": 1, "fence": "job@1"}
    (tmp_path / OWNER_FILE).write_text(json.dumps(lost))
    with pytest.raises(RunDirectoryBusy, match="on n7"):
        RunDirectory(tmp_path).claim()
    monkeypatch.setenv("DISTLLM_FENCE", "job@2")
    run = RunDirectory(tmp_path)
    run.claim()
    run.require_owned()
    assert json.loads((tmp_path / OWNER_FILE).read_text())["pid"] == os.getpid()


def test_an_earlier_start_publishes_nothing_once_a_later_one_owns_the_directory(tmp_path):
    run = RunDirectory(tmp_path)
    run.claim()
    (tmp_path / OWNER_FILE).write_text(json.dumps({"host": "n8", "pid": 5, "started": 1, "fence": "job@2"}))
    with pytest.raises(RunDirectoryBusy, match="lost its directory to pid 5 on n8"):
        run.require_owned()
    run.release()
    assert (tmp_path / OWNER_FILE).exists(), "it is not ours to remove"
