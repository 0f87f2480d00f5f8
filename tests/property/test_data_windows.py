import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import write_dataset

from distllm.data.batch import IGNORE_INDEX
from distllm.data.order import SampleOrder
from distllm.data.stream import PackedSplit, StepStream

documents = st.lists(st.lists(st.integers(1, 256), max_size=30), min_size=1, max_size=25)


@pytest.fixture(scope="module")
def shared_split(tmp_path_factory):
    directory = tmp_path_factory.mktemp("windows")
    docs = [[1 + (i * 7 + j) % 256 for j in range(i % 40)] for i in range(80)]
    write_dataset(directory, train=docs, shard_bytes=200)
    return PackedSplit(directory, "train", 16)


def naive_window(docs, k, seq_len):
    """Token by token: ids, positions and segments of sample ``k``."""
    stream = [(token, place == 0) for ids in docs for place, token in enumerate([0, *ids])]
    ids, positions, segments = [], [], []
    for token, opens in stream[k * seq_len : k * seq_len + seq_len + 1]:
        new = not ids or opens
        segments.append(0 if not ids else segments[-1] + opens)
        positions.append(0 if new else positions[-1] + 1)
        ids.append(token)
    return ids, positions, segments


@given(docs=documents, seq_len=st.integers(2, 20), shard_ids=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_windows_are_those_of_the_plain_token_stream(docs, seq_len, shard_ids):
    total = sum(len(ids) + 1 for ids in docs)
    docs = docs + [[1] * (seq_len + 1)] * (total <= seq_len)
    with tempfile.TemporaryDirectory() as directory:
        write_dataset(Path(directory), train=docs, shard_bytes=2 * shard_ids)
        split = PackedSplit(Path(directory), "train", seq_len)
        stream = [token for ids in docs for token in [0, *ids]]
        assert split.num_tokens == len(stream)
        assert split.num_samples == (len(stream) - 1) // seq_len
        every_B = np.arange(split.num_samples)
        batch = split.batch(every_B, every_B)
        for k in range(split.num_samples):
            ids, positions, segments = naive_window(docs, k, seq_len)
            assert batch.tokens_BT[k].tolist() == ids[:-1]
            assert batch.positions_BT[k].tolist() == positions[:-1]
            assert batch.segments_BT[k].tolist() == segments[:-1]
            pairs = pairwise(ids)
            assert batch.targets_BT[k].tolist() == [b if a or b else IGNORE_INDEX for a, b in pairs]


@given(world_size=st.sampled_from([1, 2, 3, 4, 6]), rows=st.sampled_from([1, 2]), first=st.integers(0, 200))
@settings(max_examples=20, deadline=None)
def test_ranks_share_the_same_global_batch(shared_split, world_size, rows, first):
    def rank_batches(rank, world_size, rows):
        stream = StepStream(
            shared_split,
            SampleOrder.single(shared_split.num_samples, 1),
            sequences_per_step=24,
            micro_batch_size=rows,
            rank=rank,
            world_size=world_size,
        )
        try:
            return stream.step(first)
        finally:
            stream.close()

    (whole,) = rank_batches(0, 1, 24)
    for rank in range(world_size):
        batches = rank_batches(rank, world_size, rows)
        assert all(batch.tokens_BT.shape[0] == rows for batch in batches)
        for name in ("tokens_BT", "targets_BT", "positions_BT", "segments_BT", "sample_ids_B"):
            mine = np.concatenate([getattr(batch, name) for batch in batches])
            np.testing.assert_array_equal(mine, getattr(whole, name)[rank::world_size])
