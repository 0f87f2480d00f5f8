import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import write_dataset

from distllm.data.shards import load_index, map_shard, plan_shards, read_document, shard_ids, verify
from distllm.data.shards.ids import decode_ids, encode_ids


def naive_plan(lengths, capacity):
    """Document by document: a shard closes before the one that would take it past the capacity."""
    bounds, start, held = [], 0, 0
    for number, length in enumerate(lengths):
        if number > start and held + length > capacity:
            bounds.append((start, number))
            start, held = number, 0
        held += length
    return [*bounds, (start, len(lengths))] if lengths else []


@given(
    lengths=st.lists(st.integers(0, 30), max_size=40),
    capacity=st.integers(0, 60),
    cuts=st.lists(st.integers(0, 40), max_size=5).map(sorted),
)
def test_a_plan_is_that_of_a_writer_that_takes_documents_one_by_one(lengths, capacity, cuts):
    plan = list(plan_shards(np.split(np.array(lengths, dtype=np.int64), cuts), capacity))
    assert [(start, stop) for start, stop, _ in plan] == naive_plan(lengths, capacity)
    assert [ids for *_, ids in plan] == [sum(lengths[start:stop]) for start, stop, _ in plan]


@given(names=st.lists(st.none() | st.text(st.characters(), max_size=12), max_size=20))
def test_any_names_survive_the_list_of_ids(names):
    assert decode_ids(encode_ids(names), Path("x")) == names


@given(
    documents=st.lists(st.lists(st.integers(0, 256), max_size=30), min_size=1, max_size=20),
    capacity=st.integers(1, 60),
)
@settings(max_examples=20, deadline=None)
def test_every_document_comes_back_whole_and_from_the_planned_shard(documents, capacity):
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_dataset(directory, train=documents, shard_bytes=2 * capacity)
        verify(directory)
        index = load_index(directory)["text"]["train"]
        plan = list(plan_shards([np.array([len(ids) + 1 for ids in documents])], capacity))
        dtype = np.dtype("<u2")
        assert [(shard.record.documents) for shard in index] == [stop - start for start, stop, _ in plan]
        for shard, (start, stop, _) in zip(index, plan, strict=True):
            assert shard_ids(directory, shard) == [f"train-{number}" for number in range(start, stop)]
            ids_M, ends_D = map_shard(directory, shard, dtype)
            assert int(ends_D[-1]) == ids_M.size
            for row in range(stop - start):
                ids_N = read_document(directory, shard, row, dtype)["text"]
                assert ids_N.tolist() == [0, *documents[start + row]]
