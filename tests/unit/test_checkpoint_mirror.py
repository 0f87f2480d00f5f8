"""Checkpoints at a URL: the marker comes last and goes first, damage is seen, rules hold there too."""

import json
import shutil

import fsspec
import pytest
from object_store import serve_s3
from transactions import transaction

from distllm.checkpoint.commit import adopted
from distllm.checkpoint.format import list_checkpoints, newest_verified, step_path, verify
from distllm.checkpoint.mirror import Mirror, mirror_of
from distllm.checkpoint.retention import Retention
from distllm.checkpoint.save import Saver
from distllm.config.schema import Config
from distllm.config.schema_checkpoint import CheckpointConfig
from distllm.data import remote
from distllm.dist.topology import Topology
from distllm.errors import CheckpointError, ConfigError, DataError, MissingDependency, StorageError
from distllm.train.run_directory import RunDirectory
from distllm.train.saving import place_checkpoints

FILES = ["COMMITTED", "manifest.json", "model-00000.safetensors", "state.json"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture(scope="module")
def s3():
    with serve_s3() as system:
        yield system


@pytest.fixture(params=["memory", "file", "s3"])
def url(request, tmp_path):
    if request.param == "s3":
        request.getfixturevalue("s3")
        yield f"s3://corpus/{tmp_path.name}"
    elif request.param == "file":
        yield f"file://{tmp_path}/there"
    else:
        yield f"memory://{tmp_path.name}"
        fsspec.filesystem("memory").store.clear()


@pytest.fixture
def memory(tmp_path):
    yield f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").store.clear()


def save(directory, step, *, loss=None, content=b"weights"):
    facts = {} if loss is None else {"valid_loss": loss, "valid_step": step}
    with transaction(directory, step) as files:
        files.write("model-00000.safetensors", content + bytes([step]))
        files.write("state.json", json.dumps({"format": 1, "step": step, "facts": facts}).encode())
    return step_path(directory, step)


def names(url):
    return remote.list_files(url, 5.0)


def test_what_was_sent_is_fetched_whole(url, tmp_path):
    mirror = Mirror(url)
    assert mirror.bring_newest(tmp_path / "fresh") == []
    for step in (1, 2):
        mirror.send(save(tmp_path / "here", step))
    assert names(f"{url}/step-000000002") == FILES
    assert mirror.steps() == [2, 1]
    told = mirror.bring_newest(tmp_path / "fresh")
    assert told == [f"fetched the checkpoint of step 2 from {url}"]
    assert [path.name for path in (tmp_path / "fresh").iterdir()] == ["step-000000002"]
    assert verify(step_path(tmp_path / "fresh", 2)).step == 2
    assert mirror.bring_newest(tmp_path / "fresh") == [], "what is here already is not fetched again"
    assert mirror.bring_newest(tmp_path / "here") == []


def test_the_same_step_can_be_sent_again(url, tmp_path):
    mirror = Mirror(url)
    mirror.send(save(tmp_path, 1, content=b"old"))
    mirror.reject(1, "gone back")
    mirror.send(save(tmp_path, 1, content=b"new"))
    assert mirror.steps() == [1]
    mirror.bring_newest(tmp_path / "fresh")
    content = (step_path(tmp_path / "fresh", 1) / "model-00000.safetensors").read_bytes()
    assert content == b"new\x01"


def test_the_rules_hold_there_by_what_lies_there(url, tmp_path):
    mirror = Mirror(url)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, None)):
        mirror.send(save(tmp_path, step, loss=loss))
    remote.send(b"half", f"{url}/step-000000009/model-00000.safetensors", 5.0)
    assert Mirror(url).prune(Retention(2, best=1)) == [9, 3, 1]
    assert {name.partition("/")[0] for name in names(url)} == {f"step-00000000{step}" for step in (2, 4, 5)}


class Breaks(Exception):
    pass


@pytest.mark.parametrize("sent", range(4))
def test_a_sender_that_dies_before_the_marker_has_sent_nothing(memory, tmp_path, monkeypatch, sent):
    mirror, left, whole = Mirror(memory), [sent], remote.send
    mirror.send(save(tmp_path / "here", 1))

    def dying(*arguments):
        if left[0] == 0:
            raise Breaks
        left[0] -= 1
        whole(*arguments)

    path = save(tmp_path / "here", 2)
    monkeypatch.setattr(remote, "send", dying)
    with pytest.raises(Breaks):
        mirror.send(path)
    assert mirror.steps() == [1]
    mirror.bring_newest(tmp_path / "fresh")
    assert newest_verified(tmp_path / "fresh")[0].step == 1


@pytest.mark.parametrize("removed", range(1, 4))
def test_a_pruner_that_dies_leaves_nothing_that_counts(memory, tmp_path, monkeypatch, removed):
    mirror, left, whole = Mirror(memory), [removed], remote.remove
    for step in (1, 2):
        mirror.send(save(tmp_path / "here", step))

    def dying(*arguments):
        if left[0] == 0:
            raise Breaks
        left[0] -= 1
        whole(*arguments)

    monkeypatch.setattr(remote, "remove", dying)
    with pytest.raises(Breaks):
        mirror.prune(Retention(1))
    assert mirror.steps() == [2]


def flip(url):
    content = bytearray(remote.read_bytes(url, 5.0))
    content[0] ^= 1
    remote.send(bytes(content), url, 5.0)


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("damage", [flip, lambda url: remote.remove(url, 5.0)], ids=["flipped", "removed"])
def test_a_damaged_one_is_rejected_and_the_one_before_is_taken(memory, tmp_path, name, damage):
    mirror = Mirror(memory)
    for step in (1, 2):
        mirror.send(save(tmp_path / "here", step))
    damage(f"{memory}/step-000000002/{name}")
    rejected, fetched = mirror.bring_newest(tmp_path / "fresh")
    assert rejected.startswith("rejected the damaged checkpoint of step 2")
    assert fetched.startswith("fetched the checkpoint of step 1")
    assert [path.name for path in (tmp_path / "fresh").iterdir()] == ["step-000000001"]
    assert mirror.steps() == [1]


def test_candidates_of_which_none_can_be_used_are_fatal_every_time(memory, tmp_path):
    mirror = Mirror(memory)
    mirror.send(save(tmp_path / "here", 1))
    flip(f"{memory}/step-000000001/state.json")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="none of them can be used"):
            mirror.bring_newest(tmp_path / "fresh")
    assert mirror.bring_newest(tmp_path / "here") == [], "a whole one here is enough"


def test_a_damaged_one_here_is_fetched_again(memory, tmp_path):
    mirror = Mirror(memory)
    mirror.send(save(tmp_path, 1))
    (step_path(tmp_path, 1) / "state.json").write_text("{}")
    mirror.bring_newest(tmp_path)
    assert verify(step_path(tmp_path, 1)).step == 1


def test_after_going_back_nobody_takes_what_came_later(memory, tmp_path):
    mirror = Mirror(memory)
    for step in (1, 2, 3):
        mirror.send(save(tmp_path / "here", step))
    mirror.reject_after(1, "corrupted memory on rank 1")
    assert mirror.steps() == [1]
    assert remote.read_bytes(f"{memory}/step-000000003/REJECTED", 5.0) == b"corrupted memory on rank 1"


def test_a_manifest_that_names_files_elsewhere_is_refused(memory, tmp_path):
    mirror = Mirror(memory)
    path = save(tmp_path / "here", 1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../evil"] = {"bytes": 1, "xxh3_128": "0"}
    from distllm.fsio import digest_bytes

    content = json.dumps(manifest).encode()
    (path / "manifest.json").write_bytes(content)
    (path / "COMMITTED").write_text(digest_bytes(content))
    mirror.send(path)
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        mirror.bring_newest(tmp_path / "fresh")


def test_what_is_adopted_and_not_whole_does_not_appear(tmp_path):
    path = save(tmp_path / "here", 1)
    (path / "state.json").unlink()

    def adopt():
        with adopted(tmp_path / "fresh", 1) as partial:
            shutil.copytree(path, partial, dirs_exist_ok=True)

    with pytest.raises(CheckpointError, match=r"state\.json"):
        adopt()
    assert list((tmp_path / "fresh").iterdir()) == []


class NoEngine:
    optimizer_steps = 0

    def state(self, wanted):
        return iter(())


@pytest.mark.parametrize("background", [True, False])
def test_a_save_counts_when_it_has_arrived(memory, tmp_path, background, monkeypatch):
    saver = Saver(tmp_path, Topology.single(), Retention(1), background=background, mirror=Mirror(memory))
    for step in (1, 2):
        saver.save(step, NoEngine(), {}, {})
        assert saver.settle() == step
    assert Mirror(memory).steps() == [2]
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "put_file", None)
    saver.save(3, NoEngine(), {}, {})
    with pytest.raises(StorageError, match="cannot write memory://"):
        saver.settle()
    assert newest_verified(tmp_path)[0].step == 3, "it is whole here all the same"
    saver.reject_after(0, "why")
    assert Mirror(memory).steps() == []


def config(home):
    return Config(name="one", checkpoint=CheckpointConfig(dir=home))


def test_a_url_is_a_mirror_and_a_path_is_the_place_itself(memory, tmp_path):
    run = RunDirectory(tmp_path / "runs" / "one")
    run.path.mkdir(parents=True)
    assert mirror_of(None, "one") is None
    assert place_checkpoints(config(None), run) == []
    mirror = mirror_of(f"{memory}/all/", "one")
    assert mirror.url == f"{memory}/all/one"
    mirror.send(save(tmp_path / "elsewhere", 5))
    (told,) = place_checkpoints(config(f"{memory}/all/"), run)
    assert "fetched the checkpoint of step 5" in told
    assert list_checkpoints(run.checkpoints)


def test_a_directory_elsewhere_is_linked_and_never_left_behind(tmp_path):
    run = RunDirectory(tmp_path / "runs" / "one")
    run.path.mkdir(parents=True)
    for home in ("fast", "fast", "faster"):
        place_checkpoints(config(str(tmp_path / home)), run)
        assert run.checkpoints.resolve() == tmp_path / home / "one"
    save(run.checkpoints, 1)
    assert list_checkpoints(tmp_path / "faster" / "one")
    with pytest.raises(ConfigError, match="not in") as caught:
        place_checkpoints(config(str(tmp_path / "fast")), run)
    assert "mv " in caught.value.remedy


def test_a_server_that_does_not_answer_is_no_empty_one(tmp_path, memory, monkeypatch):
    def down(*_, **__):
        raise TimeoutError("no answer")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "find", down)
    with pytest.raises(DataError, match="no answer"):
        Mirror(memory).bring_newest(tmp_path)
    with pytest.raises(StorageError, match="no answer"):
        Mirror(memory).prune(Retention(1))


def test_a_protocol_whose_package_is_missing_is_named():
    with pytest.raises(MissingDependency, match="gs://"):
        Mirror("gs://bucket/runs").steps()
