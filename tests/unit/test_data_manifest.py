import dataclasses
import json

import pytest
from prepared import write_dataset

from distllm.data.manifest import Forgotten, Manifest, SourceCounts
from distllm.data.shards import verify
from distllm.errors import DataError

DOCUMENTS = [[1, 2, 3], [4] * 10, [5, 256]]


@pytest.fixture
def dataset(tmp_path):
    directory = tmp_path / "set"
    write_dataset(directory, train=DOCUMENTS, valid=DOCUMENTS[:1], shard_bytes=20)
    return directory


def damage(path, offset=700):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_load_gives_back_what_was_saved(dataset):
    manifest = Manifest.load(dataset)
    assert manifest == write_dataset(dataset, train=DOCUMENTS, valid=DOCUMENTS[:1], shard_bytes=20)
    assert manifest.splits["train"].tokens == 18
    assert verify(dataset) == manifest


def test_the_digest_is_that_of_the_content(dataset, tmp_path):
    same = write_dataset(tmp_path / "same", train=DOCUMENTS, valid=DOCUMENTS[:1], shard_bytes=20)
    other = write_dataset(tmp_path / "other", train=DOCUMENTS[::-1], valid=DOCUMENTS[:1], shard_bytes=20)
    assert same.digest == Manifest.load(dataset).digest
    assert other.digest != same.digest


def test_a_missing_dataset_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(DataError, match="no prepared dataset") as error:
        Manifest.load(tmp_path / "none")
    assert (
        error.value.remedy
        == f"run: distllm prepare data.out={tmp_path / 'none'} and the keys that say what it is made of"
    )


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content["sources"]["text"]["train"].update(tokens=19),
        lambda content: content.update(vocab_size=9),
        lambda content: content["pipeline"].update(seed=1),
        lambda content: content.pop("eot_id"),
        lambda content: content.pop("digest"),
        lambda content: content.update(format=99),
        lambda content: content.update(sources=None),
    ],
)
def test_a_tampered_manifest_is_refused(dataset, edit):
    content = json.loads((dataset / "manifest.json").read_text())
    edit(content)
    (dataset / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"manifest\.json of the dataset .* cannot be used") as error:
        Manifest.load(dataset)
    assert f"distllm prepare data.out={dataset}" in error.value.remedy


@pytest.mark.parametrize("content", ["", "[]", "null", '"text"', '{"format": 1'])
def test_a_manifest_that_is_none_is_refused(dataset, content):
    (dataset / "manifest.json").write_text(content)
    with pytest.raises(DataError, match="cannot be used"):
        Manifest.load(dataset)


@pytest.mark.parametrize("name", ["index.json", "tokenizer.json"])
def test_files_beside_the_manifest_are_checked(dataset, name):
    damage(dataset / name, 3)
    with pytest.raises(DataError, match=rf"{name} .* not what was written"):
        Manifest.load(dataset)
    (dataset / name).unlink()
    with pytest.raises(DataError, match=rf"{name} .* is missing"):
        Manifest.load(dataset)


def test_sizes_are_checked_and_the_bad_shard_is_named(dataset):
    manifest = Manifest.load(dataset)
    manifest.check_sizes(dataset, "train")
    with pytest.raises(DataError, match="no split 'test'") as error:
        manifest.check_sizes(dataset, "test")
    assert error.value.remedy == "use one of: train, valid"
    shard = dataset / "text" / "train" / "00001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"text/train/00001\.tar .* it has 9728 bytes, expected 10240"):
        manifest.check_sizes(dataset, "train")
    shard.unlink()
    with pytest.raises(DataError, match=r"text/train/00001\.tar .* it is missing"):
        manifest.check_sizes(dataset, "train")
    manifest.check_sizes(dataset, "valid")


def test_verify_finds_a_flipped_bit_and_names_every_bad_shard(dataset):
    damage(dataset / "text" / "train" / "00000.tar")
    with pytest.raises(DataError) as error:
        verify(dataset)
    assert "1 problem in" in error.value.cause
    (dataset / "text" / "valid" / "00000.tar").unlink()
    with pytest.raises(DataError) as error:
        verify(dataset)
    assert "text/train/00000.tar: its content is not what was written: " in error.value.cause
    assert "text/valid/00000.tar: it is missing" in error.value.cause


def test_swapped_shards_are_found(dataset):
    first, second = dataset / "text" / "train" / "00000.tar", dataset / "text" / "train" / "00001.tar"
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    with pytest.raises(DataError, match="2 problems"):
        verify(dataset)


def test_lineage_forgotten_and_languages_survive_the_file(dataset):
    manifest = Manifest.load(dataset)
    split = manifest.sources["text"]["train"]
    spoken = dataclasses.replace(split, languages={"de": 2, "fr": 1})
    changed = dataclasses.replace(
        manifest,
        sources={"text": {**manifest.sources["text"], "train": spoken}},
        inputs="abc",
        lineage=("one", "two"),
        forgotten=Forgotten(2, ("x", "y")),
    )
    changed.save(dataset)
    loaded = Manifest.load(dataset)
    assert loaded == changed
    assert loaded.splits["train"].languages == {"de": 2, "fr": 1}
    assert [loaded.follows(digest) for digest in ("one", "two", loaded.digest, manifest.digest)] == [
        True, True, True, False,
    ]  # fmt: skip


def test_counts_add_up_over_sources(dataset):
    counts = {
        "a": SourceCounts(5, 3, {"short": 1, "copy": 1}, {"nfc": 2}),
        "b": SourceCounts(4, 1, {"short": 3}, {"nfc": 1, "tabs": 1}),
    }
    total = dataclasses.replace(Manifest.load(dataset), counts=counts).total
    assert total == SourceCounts(9, 4, {"copy": 1, "short": 4}, {"nfc": 3, "tabs": 1})


def test_all_splits_are_checked_unless_one_is_named(dataset):
    manifest = Manifest.load(dataset)
    manifest.check_sizes(dataset)
    (dataset / "text" / "valid" / "00000.tar").unlink()
    manifest.check_sizes(dataset, "train")
    with pytest.raises(DataError, match=r"text/valid/00000\.tar .* it is missing"):
        manifest.check_sizes(dataset)


def test_all_bad_files_are_told_at_once(dataset):
    assert Manifest.load(dataset).file_problems(dataset) == {}
    (dataset / "index.json").unlink()
    damage(dataset / "tokenizer.json", 3)
    assert Manifest.read(dataset).file_problems(dataset) == {
        "index.json": "it is missing",
        "tokenizer.json": "its content is not what was written",
    }
