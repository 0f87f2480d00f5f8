"""Documents are forgotten wholly, no other one moves, and a kill at any point is survived."""

import json
import os
import resource
import shutil
import signal
import sys
from functools import partial

import numpy as np
import pytest
from prepared import byte_tokenizer, write_sources

from distllm.data.manifest import Manifest
from distllm.data.shards import (
    document_at,
    document_texts,
    forget,
    index_of,
    map_shard,
    read_document,
    shard_ids,
    verify,
)
from distllm.data.shards.locked import locked
from distllm.errors import DataError, RunDirectoryBusy, StorageError

SECRET = "call Mallory at once, number 12"
U2 = np.dtype("<u2")


def build(directory):
    tokenizer = byte_tokenizer()

    def ids(*texts):
        return [tokenizer.encode(text) for text in texts]

    train = ids(*(SECRET if i == 12 else f"plain text, number {i}" for i in range(20)))
    pairs = [tuple(ids(f"eins {i}", f"one {i}")) for i in range(14)]
    sources = {"web": {"train": train, "valid": ids("held out", "also held")}, "pairs": {"train": pairs}}
    write_sources(directory, sources, fields={"pairs": ("source", "target")}, shard_bytes=250)
    refused = [
        {"id": "copy", "rule": "duplicate", "reason": "same text as train-12", "sample": SECRET[:20]},
        {"id": "train-12", "rule": "short", "reason": "it says Mallory", "sample": "Mallory is short"},
        {"id": "fine", "rule": "short", "reason": "too short", "sample": "nothing"},
    ]
    (directory / "removed.jsonl").write_text("".join(json.dumps(item) + "\n" for item in refused))
    (directory / "report.json").write_text(json.dumps({"dedup": {"samples": [SECRET[5:15], "fine"]}}))
    return directory


@pytest.fixture
def dataset(tmp_path):
    return build(tmp_path / "set")


def everything(directory):
    """Each document's id and ids, by source, split and number."""
    found = {}
    for source, splits in index_of(directory, Manifest.load(directory)).items():
        for split, shards in splits.items():
            number = 0
            for shard in shards:
                for row, id_ in enumerate(shard_ids(directory, shard)):
                    ids = read_document(directory, shard, row, U2)
                    found[source, split, number] = (id_, {f: ids_N.tolist() for f, ids_N in ids.items()})
                    number += 1
    return found


def tree(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_a_document_goes_and_nothing_else_moves(dataset):
    before, old = everything(dataset), Manifest.load(dataset)
    lengths = [
        [map_shard(dataset, shard, U2)[1].tolist() for shard in shards]
        for shards in index_of(dataset, old)["web"].values()
    ]
    removal = forget(dataset, ["train-12"])
    assert [(p.source, p.split, p.number) for p in removal.places] == [
        ("pairs", "train", 12), ("web", "train", 12),
    ]  # fmt: skip
    assert verify(dataset) == removal.manifest
    after = everything(dataset)
    gone = {key for key in before if before[key] != after[key]}
    assert gone == {("pairs", "train", 12), ("web", "train", 12)}
    for key in gone:
        assert after[key][0] is None
        for field, ids in before[key][1].items():
            assert after[key][1][field] == [0] * len(ids)
    assert lengths == [
        [map_shard(dataset, shard, U2)[1].tolist() for shard in shards]
        for shards in index_of(dataset, removal.manifest)["web"].values()
    ]
    assert list(dataset.glob("*forget*")) == []


def test_no_trace_of_the_text_or_the_name_is_left_in_any_file(dataset):
    ids = np.array(byte_tokenizer().encode(SECRET), dtype="<u2").tobytes()
    assert any(ids in content for content in tree(dataset).values())
    forget(dataset, ["train-12"])
    for name, content in tree(dataset).items():
        assert ids not in content, name
        assert b"Mallory" not in content, name
        assert b"train-12" not in content, name
    removed = [json.loads(line) for line in (dataset / "removed.jsonl").read_text().splitlines()]
    assert removed[0]["reason"] == "same text as [forgotten]"
    assert removed[0]["sample"] == removed[1]["id"] == "[forgotten]"
    assert removed[2] == {"id": "fine", "rule": "short", "reason": "too short", "sample": "nothing"}
    assert json.loads((dataset / "report.json").read_text()) == {
        "dedup": {"samples": ["[forgotten]", "fine"]}
    }
    with pytest.raises(DataError, match="has no document 'train-12'"):
        forget(dataset, ["train-12"])


def test_the_manifest_follows_the_one_before(dataset):
    first = Manifest.load(dataset)
    second = forget(dataset, ["train-12"], "web").manifest
    third = forget(dataset, ["valid-1"]).manifest
    assert third == Manifest.load(dataset)
    assert third.lineage == (first.digest, second.digest)
    assert all(third.follows(manifest.digest) for manifest in (first, second, third))
    assert not first.follows(third.digest)
    assert (third.forgotten.count, len(third.forgotten.hashes)) == (2, 2)
    old, new = first.sources["web"], third.sources["web"]
    for split, lost in (("train", len(SECRET)), ("valid", len("also held"))):
        assert (new[split].tokens, new[split].documents) == (old[split].tokens, old[split].documents)
        assert new[split].text_bytes == old[split].text_bytes - lost
    assert third.sources["pairs"] == first.sources["pairs"]


def test_only_shards_that_hold_the_document_are_written_anew(dataset):
    before = tree(dataset)
    forget(dataset, ["train-12"], "web")
    place = document_at(dataset, index_of(dataset, Manifest.load(dataset)), "web", "train", 12)
    stem = f"web/train/{place.shard:05d}"
    changed = {name for name, content in tree(dataset).items() if before.get(name) != content}
    logs = {"manifest.json", "index.json", "removed.jsonl", "report.json"}
    assert changed == {f"{stem}.tar", f"{stem}.ids.gz"} | logs


def test_a_mapped_shard_stays_readable(dataset):
    shard = index_of(dataset, Manifest.load(dataset))["web"]["train"][0]
    ids_M, _ = map_shard(dataset, shard, U2)
    before = ids_M.tolist()
    forget(dataset, [f"train-{i}" for i in range(3)])
    assert ids_M.tolist() == before


def test_every_unknown_id_is_named_and_nothing_is_changed(dataset):
    before = tree(dataset)
    with pytest.raises(DataError, match="has no document 'nobody', 'valid-0'"):
        forget(dataset, ["nobody", "train-12", "valid-0"], "pairs")
    assert tree(dataset) == before


def test_a_damaged_shard_is_not_given_new_digests(dataset):
    shard = index_of(dataset, Manifest.load(dataset))["web"]["train"][0]
    path = dataset / shard.record.path
    content = bytearray(path.read_bytes())
    content[shard.members["tokens.bin"].offset + 1] ^= 1
    path.write_bytes(content)
    before = tree(dataset)
    with pytest.raises(DataError, match="block 0"):
        forget(dataset, ["train-0"])
    assert tree(dataset) == before


def test_damage_beside_the_document_is_not_given_new_digests_either(tmp_path):
    write_sources(tmp_path / "big", {"web": {"train": [[1] * 40_000, [2] * 40_000]}})
    (shard,) = index_of(tmp_path / "big", Manifest.load(tmp_path / "big"))["web"]["train"]
    path = tmp_path / "big" / shard.record.path
    content = bytearray(path.read_bytes())
    content[shard.members["tokens.bin"].offset + 159_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="block 2"):
        forget(tmp_path / "big", ["train-0"])


def test_another_process_or_a_full_disk_changes_nothing(dataset):
    before = tree(dataset)
    with locked(dataset), pytest.raises(RunDirectoryBusy):
        forget(dataset, ["train-12"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))
    try:
        with pytest.raises(StorageError, match="no space left"):
            forget(dataset, ["train-12"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tree(dataset) == before
    verify(dataset)


def test_without_ids_nothing_happens(dataset):
    before = tree(dataset)
    assert forget(dataset, []).places == ()
    assert tree(dataset) == before


def killed_at(event_number, action):
    """Run ``action`` in a child that dies just before its nth change of the file system.

    Return whether it died.
    """
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event, arguments):
            nonlocal seen
            writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
            if writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
                seen += 1
                if seen == event_number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        action()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WIFSIGNALED(status)
    return status != 0


@pytest.mark.slow
def test_a_kill_at_any_step_leaves_the_old_dataset_or_one_that_the_next_call_finishes(dataset, tmp_path):
    old = tree(dataset)
    expected = tmp_path / "expected"
    shutil.copytree(dataset, expected)
    wanted = ["train-12", "valid-0"]
    whole = forget(expected, wanted, "web")
    outcomes, number = [], 0
    while True:
        number += 1
        work = tmp_path / f"work-{number}"
        shutil.copytree(dataset, work)
        if not killed_at(number, partial(forget, work, wanted, "web")):
            break
        if (work / "forget.json").exists():
            with pytest.raises(DataError, match="documents were being forgotten") as error:
                Manifest.load(work)
            assert error.value.remedy == f"finish it with: distllm data forget out={work}"
            staged = list((work / "forget.partial").rglob("*.tar"))
            assert not staged or Manifest.read(work).lineage == (), "the manifest was not the last"
            assert forget(work, ()).places == whole.places
            outcomes.append("finished")
        elif Manifest.load(work).lineage:
            outcomes.append("new")
        else:
            verify(work)
            assert {name: content for name, content in tree(work).items() if name in old} == old
            forget(work, wanted, "web")
            outcomes.append("old")
        verify(work)
        assert tree(work) == tree(expected)
        shutil.rmtree(work)
    assert outcomes.count("old") > 10
    assert outcomes.count("finished") > 10
    assert outcomes == sorted(outcomes, key=["old", "finished", "new"].index)


@pytest.mark.slow
def test_finishing_can_be_killed_too(dataset, tmp_path):
    number = 0
    while killed_at(number := number + 1, lambda: forget(dataset, ["train-12"])):
        if (dataset / "forget.json").exists():
            break
    again = 0
    while killed_at(again := again + 1, lambda: forget(dataset, ())):
        assert (dataset / "forget.json").exists() or Manifest.load(dataset).lineage
    assert again > 1
    verify(dataset)
    assert everything(dataset)["web", "train", 12][0] is None


@pytest.mark.slow
def test_a_staged_file_that_was_lost_is_named(dataset):
    number = 0
    while killed_at(number := number + 1, lambda: forget(dataset, ["train-12"])):
        if (dataset / "forget.json").exists():
            break
    (dataset / "forget.partial" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json is neither staged nor in its place"):
        forget(dataset, ())


def test_the_text_that_is_shown_is_the_text_that_was_written(dataset):
    index = index_of(dataset, Manifest.load(dataset))
    place = document_at(dataset, index, "web", "train", 12)
    ids = read_document(dataset, index["web"]["train"][place.shard], place.row, U2)
    assert (place.id, document_texts(ids, byte_tokenizer())) == ("train-12", {"text": SECRET})
