"""Every way in which a dataset's bytes can be wrong: found, and named."""

import dataclasses
import json
import os
import resource

import numpy as np
import pytest
from prepared import read_index, write_dataset, write_sources

from distllm.data.manifest import Manifest
from distllm.data.shards import BlockVerifier, index_of, map_shard, reindex, verify, write_index
from distllm.data.shards.format import BLOCK_BYTES, HEADER_BYTES
from distllm.data.shards.locked import locked
from distllm.errors import DataError, RunDirectoryBusy, StorageError

U2 = np.dtype("<u2")
DOCUMENTS = [[1 + (i * 7 + j) % 256 for j in range(9_000)] for i in range(24)]


@pytest.fixture
def dataset(tmp_path):
    directory = tmp_path / "set"
    write_dataset(directory, train=DOCUMENTS, shard_bytes=220_000)
    return directory


def first(directory):
    return read_index(directory, "text", "train")[0]


def flip(directory, shard, offset):
    path = directory / shard.record.path
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def cause_of(directory):
    with pytest.raises(DataError) as error:
        verify(directory)
    assert error.value.remedy
    return error.value.cause


def test_a_whole_dataset_verifies(dataset):
    assert len(read_index(dataset, "text", "train")) == 2
    assert verify(dataset) == Manifest.load(dataset)


@pytest.mark.parametrize("suffix", ["tokens.bin", "docs.idx", "blocks.idx", "meta.json"])
def test_a_flipped_header_byte_is_found_and_named(dataset, suffix):
    shard = first(dataset)
    flip(dataset, shard, shard.members[suffix].offset - HEADER_BYTES + 3)
    assert f"00000.tar: its content is not what was written: shard {dataset}" in cause_of(dataset)
    assert suffix in cause_of(dataset)
    if suffix != "blocks.idx":
        with pytest.raises(DataError, match=rf"{suffix} at byte \d+ is damaged") as error:
            map_shard(dataset, shard, U2)
        assert f"distllm data reindex out={dataset}" in error.value.remedy


@pytest.mark.parametrize("suffix", ["docs.idx", "blocks.idx"])
def test_a_flipped_byte_of_a_small_member_is_found_before_anything_is_read(dataset, suffix):
    shard = first(dataset)
    flip(dataset, shard, shard.members[suffix].offset + 9)
    assert f"{suffix} is damaged" in cause_of(dataset)
    with pytest.raises(DataError, match=rf"00000\.tar: {suffix} is damaged"):
        BlockVerifier(dataset, shard, U2)


@pytest.mark.parametrize("block", [0, 1, 3])
def test_a_flipped_id_is_found_by_whoever_touches_its_block(dataset, block):
    shard = first(dataset)
    ids_M, _ = map_shard(dataset, shard, U2)
    flip(dataset, shard, shard.members["tokens.bin"].offset + block * BLOCK_BYTES + 100)
    verifier = BlockVerifier(dataset, shard, U2)
    per_block = BLOCK_BYTES // 2
    others = [other for other in range(-(-ids_M.size // per_block)) if other != block]
    for other in others:
        verifier.check(other * per_block, min(ids_M.size, (other + 1) * per_block))
    at = block * per_block
    assert verifier.damaged(at, at + 1) == [block]
    assert verifier.damaged(0, ids_M.size) == [block]
    high = min((block + 1) * BLOCK_BYTES, ids_M.nbytes)
    named = rf"00000\.tar: block {block} of tokens\.bin, bytes {block * BLOCK_BYTES} to {high}, is damaged"
    for _ in range(2):
        with pytest.raises(DataError, match=named) as error:
            verifier.check(0, ids_M.size)
    assert "data.on_damage=skip" in error.value.remedy
    assert f"block {block} of tokens.bin" in cause_of(dataset)


def test_a_block_that_was_right_is_not_read_again(dataset):
    shard = first(dataset)
    verifier = BlockVerifier(dataset, shard, U2)
    assert verifier.damaged(5, 5) == []
    verifier.check(0, 10)
    flip(dataset, shard, shard.members["tokens.bin"].offset + 4)
    verifier.check(0, 10)
    with pytest.raises(DataError, match="block 0"):
        BlockVerifier(dataset, shard, U2).check(0, 10)


def test_blocks_of_each_field_are_told_apart(tmp_path):
    pairs = [([i] * 20_000, [i + 1] * 30_000) for i in range(3)]
    write_sources(tmp_path / "a", {"pairs": {"train": pairs}}, fields={"pairs": ("source", "target")})
    (shard,) = read_index(tmp_path / "a", "pairs", "train")
    flip(tmp_path / "a", shard, shard.members["target.bin"].offset + BLOCK_BYTES + 1)
    BlockVerifier(tmp_path / "a", shard, U2, "source").check(0, 60_000)
    verifier = BlockVerifier(tmp_path / "a", shard, U2, "target")
    assert verifier.damaged(0, 90_000) == [1]
    assert "block 1 of target.bin" in cause_of(tmp_path / "a")


def test_a_byte_between_the_members_is_damage_too(dataset):
    shard = first(dataset)
    flip(dataset, shard, shard.record.bytes - 1)
    assert "bytes between the members were changed" in cause_of(dataset)


@pytest.mark.parametrize("where", ["member boundary", "mid-member", "empty"])
def test_a_cut_shard_is_refused_at_once(dataset, where):
    shard = first(dataset)
    path = dataset / shard.record.path
    size = {
        "member boundary": shard.members["docs.idx"].offset - HEADER_BYTES,
        "mid-member": 5000,
        "empty": 0,
    }
    os.truncate(path, size[where])
    named = f"it has {size[where]} bytes, expected {shard.record.bytes}"
    assert named in cause_of(dataset)
    with pytest.raises(DataError, match=named):
        map_shard(dataset, shard, U2)
    with pytest.raises(DataError, match=r"00000\.tar cannot be indexed"):
        reindex(dataset)


def test_missing_swapped_and_left_over_shards_are_all_named(dataset):
    a, b = (dataset / shard.record.path for shard in read_index(dataset, "text", "train"))
    spare = a.with_name("00002.tar")
    a.rename(spare)
    assert "text/train/00000.tar: it is missing" in cause_of(dataset)
    assert "text/train/00002.tar: the manifest does not name it" in cause_of(dataset)
    with pytest.raises(DataError, match="it is missing"):
        map_shard(dataset, first(dataset), U2)
    b.rename(a)
    spare.rename(b)
    cause = cause_of(dataset)
    assert cause.startswith("2 problems")
    assert "00000.tar" in cause
    assert "00001.tar" in cause
    with pytest.raises(DataError, match="not the one of the index"):
        map_shard(dataset, first(dataset), U2)
    with pytest.raises(DataError, match="belongs to another shard"):
        reindex(dataset)


def test_the_index_of_another_dataset_is_refused_with_the_way_out(dataset, tmp_path):
    other = [[5, *ids[1:]] for ids in DOCUMENTS]
    write_dataset(tmp_path / "other", train=other, shard_bytes=220_000)
    mine = (dataset / "index.json").read_bytes()
    (dataset / "index.json").write_bytes((tmp_path / "other" / "index.json").read_bytes())
    with pytest.raises(DataError, match=r"index\.json: its content is not what was written") as error:
        verify(dataset)
    assert f"distllm data reindex out={dataset}" in error.value.remedy
    with pytest.raises(DataError, match="name different shards"):
        index_of(dataset, Manifest.read(dataset))
    with pytest.raises(DataError, match=r"digest of meta\.json is another: damaged, or one is older"):
        map_shard(dataset, first(dataset), U2)
    reindex(dataset)
    assert (dataset / "index.json").read_bytes() == mine
    verify(dataset)


def test_an_index_that_points_at_another_member_is_refused(tmp_path):
    pairs = {"pairs": {"train": [([1], [2])]}}
    write_sources(tmp_path / "a", pairs, fields={"pairs": ("source", "target")})
    (shard,) = read_index(tmp_path / "a", "pairs", "train")
    members = {**shard.members, "source.idx": shard.members["target.idx"]}
    with pytest.raises(DataError, match=r"it has 00000\.target\.idx of 8 bytes, expected source\.idx"):
        map_shard(tmp_path / "a", dataclasses.replace(shard, members=members), U2, "source")


def test_a_list_of_ids_is_part_of_the_dataset(dataset):
    ids = dataset / "text" / "train" / "00001.ids.gz"
    ids.write_bytes(ids.read_bytes()[:-3])
    assert "00001.ids.gz is not what was written" in cause_of(dataset)
    ids.unlink()
    assert "00001.ids.gz is missing" in cause_of(dataset)


@pytest.mark.parametrize("count", ["tokens", "documents"])
def test_a_manifest_that_contradicts_its_shards_is_named(dataset, count):
    manifest = Manifest.load(dataset)
    split = manifest.sources["text"]["train"]
    wrong = dataclasses.replace(split, **{count: 5})
    dataclasses.replace(manifest, sources={"text": {"train": wrong}}).save(dataset)
    assert f"manifest.json: text/train has 5 {count}, its shards have {getattr(split, count)}" in cause_of(
        dataset
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokenizer_fingerprint": "x"}, "says tokenizer="),
        ({"token_dtype": "uint32"}, "says dtype=uint16, the dataset says uint32"),
        ({"fields": {"text": ("source",)}}, "it has the fields text, the manifest says otherwise"),
        ({"fields": {}}, "does not name the fields of text"),
    ],
)
def test_a_manifest_of_another_kind_is_named(dataset, change, named):
    dataclasses.replace(Manifest.load(dataset), **change).save(dataset)
    assert named in cause_of(dataset)


def test_shards_named_by_the_manifest_and_not_by_the_index_are_found(dataset):
    manifest = Manifest.load(dataset)
    split = manifest.sources["text"]["train"]
    fewer = dataclasses.replace(split, shards=split.shards[:1])
    dataclasses.replace(manifest, sources={"text": {"train": fewer}}).save(dataset)
    assert "name different shards" in cause_of(dataset)


def test_without_an_index_the_damage_of_all_files_is_still_found(dataset):
    flip(dataset, first(dataset), 5_000)
    (dataset / "text" / "train" / "00001.tar").unlink()
    (dataset / "tokenizer.json").write_text("{}")
    (dataset / "index.json").unlink()
    with pytest.raises(DataError) as error:
        verify(dataset)
    for named in (
        "4 problems", "tokenizer.json: its content", "index.json: it is missing", "00000.tar: its content",
        "00001.tar: it is missing",
    ):  # fmt: skip
        assert named in error.value.cause
    assert f"distllm data reindex out={dataset}" in error.value.remedy


def test_a_manifest_of_format_1_is_refused_with_its_remedy(dataset):
    content = json.loads((dataset / "manifest.json").read_text())
    (dataset / "manifest.json").write_text(json.dumps({**content, "format": 1}))
    with pytest.raises(DataError, match="of format 1") as error:
        Manifest.load(dataset)
    assert error.value.remedy == f"remove {dataset}, then run: distllm prepare data.out={dataset}"


def test_one_process_at_a_time_changes_a_dataset(dataset):
    with locked(dataset), pytest.raises(RunDirectoryBusy, match="another process is changing"):
        reindex(dataset)
    reindex(dataset)


def test_a_full_disk_leaves_the_index_as_it_was(dataset):
    before = (dataset / "index.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(StorageError, match="no space left"):
            write_index(dataset, index_of(dataset, Manifest.load(dataset)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (dataset / "index.json").read_bytes() == before
    verify(dataset)
