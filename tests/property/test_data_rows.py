"""Every id once, and the same global batches for any ranks, over all the ways to order and pack."""

import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import write_sources

from distllm.data.batch import IGNORE_INDEX
from distllm.data.lengths import LengthWarmup
from distllm.data.order import Phase, SampleOrder
from distllm.data.stream import PackedSplit, StepStream


@st.composite
def corpora(draw, sources=4):
    """Documents of one to four sources in which no id but EOT (0) occurs twice."""
    lengths = st.lists(st.integers(0, 30), min_size=1, max_size=25)
    corpus, following = {}, 1
    for name in "abcd"[: draw(st.integers(1, sources))]:
        corpus[name] = []
        for length in draw(lengths):
            corpus[name].append(list(range(following, following + length)))
            following += length
    return corpus


def opened(directory, corpus, *, seq_len, packing="window", shard_ids=40):
    write_sources(
        directory,
        {name: {"train": documents} for name, documents in corpus.items()},
        shard_bytes=2 * shard_ids,
    )
    return PackedSplit(directory, "train", seq_len, packing=packing)


def enough(corpus, seq_len):
    """The same corpus with one more document where no row would be full."""
    return {name: [*docs, [60000 + k for k in range(seq_len + 1)]] for name, docs in corpus.items()}


@given(
    corpus=corpora(),
    seq_len=st.integers(2, 20),
    packing=st.sampled_from(["greedy", "best_fit"]),
    shard_ids=st.integers(2, 200),
)
@settings(max_examples=50, deadline=None)
def test_packed_rows_hold_every_id_once_as_input_and_once_as_target(corpus, seq_len, packing, shard_ids):
    with tempfile.TemporaryDirectory() as directory:
        split = opened(Path(directory), corpus, seq_len=seq_len, packing=packing, shard_ids=shard_ids)
        every_B = np.arange(split.num_samples)
        batch = split.batch(every_B, every_B)
    ids = sorted(token for docs in corpus.values() for ids in docs for token in ids)
    documents = [ids for docs in corpus.values() for ids in docs]
    assert sorted(batch.tokens_BT[batch.tokens_BT > 0].tolist()) == ids
    assert sorted(batch.targets_BT[batch.targets_BT > 0].tolist()) == ids
    # each document that is not empty teaches its end; nothing else has EOT as target
    assert (batch.targets_BT == 0).sum() == sum(map(bool, documents))
    follower = {a: b for ids in documents for a, b in pairwise([*ids, 0]) if a}
    for token, target in zip(
        batch.tokens_BT.ravel().tolist(), batch.targets_BT.ravel().tolist(), strict=True
    ):
        assert target == follower[token] if token else target == IGNORE_INDEX or target > 0
    inputs = len(ids) + len(documents)
    assert round((1 - split.padding) * split.num_samples * seq_len) == inputs
    assert split.num_samples >= -(-inputs // seq_len)


@given(corpus=corpora(sources=1), seq_len=st.integers(2, 12), packing=st.sampled_from(["greedy", "best_fit"]))
@settings(max_examples=40, deadline=None)
def test_a_document_that_fits_is_whole_and_a_segment_of_its_own(corpus, seq_len, packing):
    with tempfile.TemporaryDirectory() as directory:
        split = opened(Path(directory), corpus, seq_len=seq_len, packing=packing)
        every_B = np.arange(split.num_samples)
        batch = split.batch(every_B, every_B)
    found = []
    for row in range(split.num_samples):
        for segment in range(int(batch.segments_BT[row].max()) + 1):
            here_T = batch.segments_BT[row] == segment
            assert batch.positions_BT[row][here_T].tolist() == list(range(int(here_T.sum())))
            found.append(tuple(batch.tokens_BT[row][here_T].tolist()))
    wanted = Counter((0, *ids) for ids in corpus["a"] if 0 < len(ids) < seq_len)
    assert wanted <= Counter(found)


@given(
    corpus=corpora(),
    seed=st.integers(0, 1000),
    packing=st.sampled_from(["window", "greedy", "best_fit"]),
    world_size=st.sampled_from([1, 2, 3, 4]),
    window=st.sampled_from([None, 1, 3]),
    switch=st.integers(1, 100),
)
@settings(max_examples=40, deadline=None)
def test_the_global_batches_are_the_same_for_any_ranks_and_any_restart(
    corpus, seed, packing, world_size, window, switch
):
    seq_len, steps, sequences = 8, 6, 12
    with tempfile.TemporaryDirectory() as directory:
        split = opened(Path(directory), enough(corpus, seq_len), seq_len=seq_len, packing=packing)
        quotas = [source.total and 1 + n for n, source in enumerate(split.sources)]
        phases = [Phase(0, tuple(quotas)), Phase(switch, tuple(map(bool, quotas)))]
        order = SampleOrder(split.sources, phases, seed=seed, window_shards=window)
        lengths = LengthWarmup(seq_len, 2, 200)

        def rows(step, rank, world_size, micro, stream=None):
            fresh = stream or StepStream(
                split,
                order,
                sequences_per_step=sequences,
                micro_batch_size=micro,
                rank=rank,
                world_size=world_size,
                lengths=lengths,
            )
            batches = fresh.step(step * sequences)
            fresh.close()
            return [
                np.concatenate([getattr(batch, name) for batch in batches])
                for name in ("tokens_BT", "targets_BT", "positions_BT", "segments_BT", "sample_ids_B")
            ]

        for step in range(steps):
            whole = rows(step, 0, 1, sequences)
            for rank in range(world_size):
                for mine, all_ranks in zip(rows(step, rank, world_size, 1), whole, strict=True):
                    np.testing.assert_array_equal(mine, all_ranks[rank::world_size])


@given(
    corpus=corpora(),
    packing=st.sampled_from(["window", "greedy", "best_fit"]),
    seq_len=st.integers(2, 12),
    shard_ids=st.integers(2, 80),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_samples_with_an_id_are_those_that_hold_it(corpus, packing, seq_len, shard_ids, data):
    source = data.draw(st.integers(0, len(corpus) - 1))
    documents = enough(corpus, seq_len)["abcd"[source]]
    chosen = data.draw(st.integers(0, len(documents) - 1))
    with tempfile.TemporaryDirectory() as directory:
        split = opened(
            Path(directory), enough(corpus, seq_len), seq_len=seq_len, packing=packing, shard_ids=shard_ids
        )
        shards = split.manifest.sources["abcd"[source]]["train"].shards
        # where the document lies, from the counts of its shards
        shard, row = 0, chosen
        while row >= shards[shard].documents:
            row -= shards[shard].documents
            shard += 1
        before = sum(len(ids) + 1 for ids in documents[chosen - row : chosen])
        wanted = set(documents[chosen])
        sample_B = np.arange(split.sources[source].total)
        batch = split.batch(split.numbers(np.full_like(sample_B, source), sample_B), sample_B)
        holding = []
        for sample in sample_B.tolist():
            held = set(batch.tokens_BT[sample].tolist()) | set(batch.targets_BT[sample].tolist())
            if held & wanted:
                holding.append(sample)
        if wanted:
            start = before + 1
            assert split.samples_with(source, shard, start, start + len(wanted)) == holding
