"""Saving beside the training: never two at once, nothing lost, errors told, room made."""

import os
import threading
from pathlib import Path

import disks
import pytest
import torch
from engine_jobs import make_model, make_optimizer, train_step

from distllm.checkpoint import save as save_module
from distllm.checkpoint import space
from distllm.checkpoint.background import Background
from distllm.checkpoint.format import list_checkpoints, newest_verified
from distllm.checkpoint.load import find_checkpoint, load_checkpoint
from distllm.checkpoint.retention import Retention
from distllm.checkpoint.save import Saver
from distllm.config.engine import deepspeed_json
from distllm.config.schema_checkpoint import CheckpointConfig
from distllm.dist.build import build_engine
from distllm.dist.topology import Topology
from distllm.errors import StorageError
from distllm.train.chronicle import Chronicle
from distllm.train.saving import Saves
from distllm.train.state import TrainState

SINGLE = Topology.single()


def make_engine(width=33):
    settings = deepspeed_json(
        zero_stage=0, micro_batch_size=4, grad_accum_steps=2, world_size=1, grad_clip=0.5,
        compute="fp32", bucket_bytes=4096, device="cpu",
    )  # fmt: skip
    return build_engine(
        "local", make_model(width), make_optimizer, settings=settings, topology=SINGLE, timeout_seconds=10
    )


class Gate:
    """Holds up every write until it is opened, and counts how many run at a time."""

    def __init__(self, monkeypatch):
        self.open = threading.Event()
        self.running = self.most = 0
        whole = save_module.Saver._write

        def held(*arguments):
            self.running += 1
            self.most = max(self.most, self.running)
            assert self.open.wait(30)
            whole(*arguments)
            self.running -= 1

        monkeypatch.setattr(save_module.Saver, "_write", held)


@pytest.fixture
def gate(monkeypatch):
    held = Gate(monkeypatch)
    yield held
    held.open.set()


def test_a_save_in_the_background_holds_the_state_of_when_it_was_asked_for(tmp_path, gate):
    engine, saver = make_engine(), Saver(tmp_path, SINGLE, Retention(2), background=True)
    train_step(engine, SINGLE, 0)
    before = {name: tensor.clone() for name, tensor in engine.state()}
    saver.save(1, engine, {"step": 1}, {})
    assert (saver.pending, saver.done) == (1, False)
    assert list_checkpoints(tmp_path) == [], "nothing is there before it is whole"
    train_step(engine, SINGLE, 1)
    with pytest.raises(ValueError, match="step 1 is still being written"):
        saver.save(2, engine, {"step": 2}, {})
    gate.open.set()
    assert saver.settle() == 1
    assert (saver.pending, saver.done) == (None, False)
    fresh = make_engine()
    assert load_checkpoint(find_checkpoint(tmp_path), fresh) == {"step": 1}
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.state())


def test_without_memory_for_a_copy_the_training_waits_for_the_save(tmp_path, monkeypatch, caplog):
    engine, started, whole = make_engine(), [], Background.start
    monkeypatch.setattr(Background, "start", lambda *job: started.append(job) or whole(*job))
    for free, beside in ((1099, 1), (1100, 3), (None, 5)):  # the commit is always
        monkeypatch.setattr(save_module, "available_memory", lambda free=free: free)
        saver = Saver(tmp_path, SINGLE, Retention(1), background=True, expected_bytes=1000)
        saver.save(1, engine, {"step": 1}, {})
        assert saver.settle() == 1
        assert len(started) == beside
    assert newest_verified(tmp_path)[0].step == 1
    (told,) = caplog.messages
    assert "training waits for this save" in told


def test_settling_when_nothing_is_written_is_nothing(tmp_path):
    saver = Saver(tmp_path, SINGLE, Retention(2), background=True)
    assert saver.settle() is None
    assert saver.close() is False


def test_a_job_that_fails_is_told_once_and_only_when_its_result_is_taken():
    worker = Background()

    def fail():
        raise StorageError("full")

    for start in (worker.start, worker.start_here):
        start(fail)
        with pytest.raises(ValueError, match="still"):
            worker.start(fail)
        assert worker.wait(30)
        assert worker.done
        with pytest.raises(StorageError, match="full"):
            worker.result()
        worker.result()
        assert not worker.done


class Told(Chronicle):
    def __init__(self):
        super().__init__()
        self.events = []

    def event(self, kind, **fields):
        self.events.append((kind, fields["step"]))


def make_saves(directory, engine=None, state=None, **config):
    settings = CheckpointConfig(**{"every_steps": 2, "keep_last": 5, **config})
    state, told, lines = state or TrainState(), Told(), []
    saver = Saver(
        directory,
        SINGLE,
        Retention.from_config(settings),
        background=settings.background,
        expected_bytes=1000,
    )
    return (
        Saves(saver, settings, state, engine or make_engine(), told, lines.append),
        state,
        told.events,
        lines,
    )


def test_a_save_that_is_due_while_one_is_written_waits_for_it(tmp_path, gate):
    saves, state, events, _ = make_saves(tmp_path)
    state.step = 2
    saves.save({}, {})
    threading.Timer(0.3, gate.open.set).start()
    state.step = 4
    saves.save({}, {})
    assert ("saved", 2) in events
    saves.wait()
    assert events == [("saved", 2), ("saved", 4)]
    assert gate.most == 1


def test_what_became_of_a_write_is_told_at_the_border_of_a_step(tmp_path, gate):
    saves, state, events, _ = make_saves(tmp_path)
    state.step = 2
    saves.save({}, {})
    assert not saves.written
    saves.agree(2, written=False)
    assert events == []
    gate.open.set()
    for expected in ([], [("saved", 2)]):  # the shares of all ranks, then the checkpoint
        while not saves.written:
            pass
        saves.agree(2, written=True)
        assert events == expected
    assert not saves.written


def test_an_attempt_that_ends_by_an_error_lets_the_write_end(tmp_path, gate):
    saves, state, events, _ = make_saves(tmp_path)
    state.step = 2
    saves.save({}, {})
    threading.Timer(0.2, gate.open.set).start()
    saves.close()
    assert events == [("saved", 2)]
    assert newest_verified(tmp_path)[0].step == 2


def test_ephemeral_saves_come_between_and_only_the_newest_stays(tmp_path):
    saves, state, _, _ = make_saves(tmp_path, every_steps=4, ephemeral_every_steps=1)
    seen = []
    for step in range(1, 7):
        state.step = step
        assert saves.due(step)
        saves.save({}, {})
        saves.wait()
        seen.append(sorted(int(path.name[5:]) for path in list_checkpoints(tmp_path)))
    assert seen == [[1], [2], [3], [4], [4, 5], [4, 6]]


@pytest.fixture(params=[True, False], ids=["background", "blocking"])
def background(request):
    return request.param


def test_without_room_nothing_is_begun_training_goes_on_and_a_row_of_failures_ends_it(
    tmp_path, monkeypatch, background
):
    saves, state, events, lines = make_saves(tmp_path, background=background, max_failures=3)
    free = [10**12]
    monkeypatch.setattr(space, "free_bytes", lambda _: free[0])

    def save(step, *, must=False):
        state.step = step
        saves.save({}, {}, must=must)
        saves.wait()

    save(2)
    free[0] = 999
    save(4)
    save(6)
    assert "step 4 was not written: no space left" in lines[0]
    assert "checkpoint.keep_last" in lines[0]
    free[0] = 10**12
    save(8)
    free[0] = 999
    save(10)
    save(12)
    with pytest.raises(StorageError, match="no space left") as caught:
        save(14)
    assert caught.value.exit_code == 74
    assert [kind for kind, _ in events] == ["saved", "save_failed", "save_failed", "saved"] + [
        "save_failed"
    ] * 3
    assert [int(path.name[5:]) for path in list_checkpoints(tmp_path)] == [8, 2]


def test_the_last_save_may_not_fail(tmp_path, monkeypatch, background):
    saves, state, _, _ = make_saves(tmp_path, background=background)
    monkeypatch.setattr(space, "free_bytes", lambda _: 0)
    state.step = 2
    with pytest.raises(StorageError, match="no space left"):
        saves.save({}, {}, must=True)


@pytest.fixture
def small_disk(tmp_path):
    with disks.small(tmp_path / "disk", mebibytes=2) as directory:
        yield directory


def test_a_disk_that_fills_up_during_a_save_costs_that_save_only(small_disk, background):
    engine = make_engine(width=257)
    saves, state, events, lines = make_saves(small_disk / "c", engine, background=background)
    state.step = 2
    saves.save({}, {})
    saves.wait()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - 300_000))
    state.step = 4
    saves.save({}, {})
    saves.wait()
    assert events == [("saved", 2), ("save_failed", 4)]
    assert "no space left" in lines[0]
    assert [path.name for path in (small_disk / "c").iterdir()] == ["step-000000002"]
    ballast.unlink()
    state.step = 6
    saves.save({}, {})
    saves.wait()
    assert newest_verified(small_disk / "c")[0].step == 6
    fresh = make_engine(width=257)
    load_checkpoint(find_checkpoint(small_disk / "c"), fresh)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(engine.state(), fresh.state(), strict=True))


def test_the_disk_is_compared_with_what_will_be_kept_before_the_first_step(tmp_path, monkeypatch):
    def check(room, retention, **changes):
        monkeypatch.setattr(space, "free_bytes", lambda _: room)
        return space.check_space(tmp_path, 100, retention, **{"max_steps": 10, "ephemeral": False} | changes)

    assert check(400, Retention(3)) is None
    with pytest.raises(StorageError, match=r"4 of about 100 B .* space for 3") as caught:
        check(399, Retention(3))
    assert "keep_last" in caught.value.remedy
    with pytest.raises(StorageError):
        check(400, Retention(3), ephemeral=True)
    with pytest.raises(StorageError):
        check(400, Retention(3, best=1))
    assert check(900, Retention(3, every_steps=2)) is None
    assert "keeps 5 checkpoints" in check(899, Retention(3, every_steps=2))
    (tmp_path / "step-000000001").mkdir()
    Path(tmp_path / "step-000000001" / "model").write_bytes(bytes(100))
    assert check(300, Retention(3)) is None
