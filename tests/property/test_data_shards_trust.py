"""No byte of a dataset can change unseen, and forgetting moves nothing."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import write_sources

from distllm.data.manifest import Manifest
from distllm.data.shards import BlockVerifier, forget, load_index, map_shard, read_document, verify
from distllm.errors import DataError

U2 = np.dtype("<u2")
LONG = [[1 + (i * 31 + j) % 256 for j in range(25_000)] for i in range(4)]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trust") / "set"
    write_sources(directory, {"web": {"train": LONG}})
    return directory


def with_flipped_bit(pristine, directory, path, place):
    shutil.copytree(pristine, directory)
    content = bytearray((directory / path).read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    (directory / path).write_bytes(content)


@given(
    path=st.sampled_from(
        ["web/train/00000.tar", "web/train/00000.ids.gz", "index.json", "tokenizer.json", "manifest.json"]
    ),
    place=st.floats(0, 1),
)
@settings(max_examples=40, deadline=None)
def test_any_flipped_bit_of_any_file_is_found(pristine, path, place):
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "set"
        with_flipped_bit(pristine, directory, path, place)
        with pytest.raises(DataError) as error:
            verify(directory)
        assert error.value.remedy
        assert Path(path).name in str(error.value)


@given(place=st.floats(0, 1), start=st.integers(0, 99_000), length=st.integers(1, 3_000))
@settings(max_examples=60, deadline=None)
def test_a_verified_read_is_right_or_an_error(pristine, place, start, length):
    expected_M = np.array([token for ids in LONG for token in [0, *ids]])
    (shard,) = load_index(pristine)["web"]["train"]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "set"
        with_flipped_bit(pristine, directory, shard.record.path, place)
        try:
            ids_M, ends_D = map_shard(directory, shard, U2)
            BlockVerifier(directory, shard, U2).check(start, start + length)
        except DataError:
            return
        assert ends_D.tolist() == [25_001 * (i + 1) for i in range(4)]
        assert ids_M[start : start + length].tolist() == expected_M[start : start + length].tolist()


@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=12),
    held_out=st.lists(st.integers(0, 9), max_size=3),
    shard_ids=st.integers(1, 60),
    data=st.data(),
)
@settings(max_examples=20, deadline=None)
def test_forgetting_changes_the_documents_it_names_and_nothing_else(lengths, held_out, shard_ids, data):
    splits = {
        "train": [[1 + i] * length for i, length in enumerate(lengths)],
        "valid": [[100 + i] * length for i, length in enumerate(held_out)],
    }
    names = [f"{split}-{i}" for split, documents in splits.items() for i in range(len(documents))]
    gone = data.draw(st.sets(st.sampled_from(names), min_size=1))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "set"
        before = write_sources(directory, {"web": splits}, shard_bytes=2 * shard_ids)
        removal = forget(directory, gone)
        assert verify(directory) == removal.manifest
        assert {place.id for place in removal.places} == gone
        assert removal.manifest.follows(before.digest)
        assert removal.manifest.forgotten.count == len(removal.manifest.forgotten.hashes) == len(gone)
        for split, documents in splits.items():
            expected = [
                [0] * (len(ids) + 1) if f"{split}-{i}" in gone else [0, *ids]
                for i, ids in enumerate(documents)
            ]
            shards = load_index(directory)["web"][split]
            held = [
                read_document(directory, shard, row, U2)["text"].tolist()
                for shard in shards
                for row in range(shard.record.documents)
            ]
            assert held == expected
            kept_bytes = sum(len(ids) for i, ids in enumerate(documents) if f"{split}-{i}" not in gone)
            assert Manifest.load(directory).sources["web"][split].tokens == sum(map(len, expected))
            assert Manifest.load(directory).sources["web"][split].text_bytes == kept_bytes
